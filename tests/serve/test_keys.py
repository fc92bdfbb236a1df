"""Keys: who is let in, what is said to the others, and that nothing shows a key."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.datastructures import Headers

from serve.errors import ForbiddenError, UnauthorizedError
from serve.http.keys import Keys, load_keys

OLD, NEW, ADMIN = "old-key-0123456789", "new-key-0123456789", "admin-key-0123456789"
KEYS = Keys((OLD.encode(), NEW.encode()), (ADMIN.encode(),))


def with_key(key: str, kind: str = "Bearer") -> Headers:
    return Headers({"authorization": f"{kind} {key}"})


def test_every_key_of_a_rotation_is_good() -> None:
    for key in (OLD, NEW):
        KEYS.allow("/v2/models/loss/infer", with_key(key))
    KEYS.allow("/v1/loss", with_key(OLD, "bearer"))


@pytest.mark.parametrize("path", ["/v2/models/loss/infer", "/v1/loss", "/v2", "/docs", "/metrics", "/nothing"])
def test_no_key_and_a_wrong_one(path: str) -> None:
    for headers in (Headers({}), with_key(""), with_key(OLD, "Basic"), Headers({"authorization": OLD})):
        with pytest.raises(UnauthorizedError, match="Authorization: Bearer"):
            KEYS.allow(path, headers)
    for wrong in (OLD[:-1], OLD + "x", OLD.upper(), ADMIN, "ä" * 20):
        with pytest.raises(ForbiddenError) as caught:
            KEYS.allow(path, with_key(wrong))
        assert wrong not in str(caught.value)


def test_administration_has_keys_of_its_own() -> None:
    path = "/v2/systemsharedmemory/region/x/register"
    KEYS.allow(path, with_key(ADMIN))
    with pytest.raises(ForbiddenError, match="administration"):
        KEYS.allow(path, with_key(OLD))
    # Without any, those of inference do.
    Keys((OLD.encode(),)).allow(path, with_key(OLD))


def test_health_needs_none_and_without_keys_nothing_does() -> None:
    KEYS.allow("/v2/health/ready", Headers({}))
    Keys().allow("/v2/models/loss/infer", Headers({}))
    with pytest.raises(UnauthorizedError):
        Keys((), (ADMIN.encode(),)).allow("/v2/systemsharedmemory/status", Headers({}))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# for the workers\n{OLD}\n\n  {NEW}  \n")
    assert load_keys(path) == (OLD.encode(), NEW.encode())
    assert load_keys(path, [ADMIN]) == (ADMIN.encode(), OLD.encode(), NEW.encode())
    assert load_keys(None) == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [("# nothing\n", "has no key"), ("short\n", "16 or more"), (f"{OLD}\nwith a space in it\n", "key 2 of 2")],
)
def test_files_that_are_refused_show_no_key(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        load_keys(path)
    assert OLD not in str(caught.value)
    assert "short" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_keys(tmp_path / "none")

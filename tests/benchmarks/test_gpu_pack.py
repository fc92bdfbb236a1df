"""What is carried to a bare GPU machine is complete, for this commit, and not too large."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import pack


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder with empty files in all places."""
    names = [line.replace("-", "_") for line in pack.WHEELS.read_text().split()]
    wheels = [f"wheels/{name.replace('==', '-')}-cp312-cp312-manylinux_2_28_x86_64.whl" for name in names]
    for path in (*(tmp_path / name for name in wheels), *(pack.models_of(tmp_path) / name for name in pack.MODELS)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_a_complete_pack(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main(["--check", "--out", str(packed)]) == 0
    assert "is complete" in capsys.readouterr().out


def test_what_is_missing_is_named(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next(packed.glob("wheels/fastapi_offline-*")).unlink()
    (packed / "wheels" / "fastapi_offline-1-py3-none-any.whl").touch()
    (packed / "wheels" / "fastapi-1-py3-none-any.whl").touch()
    (pack.models_of(packed) / pack.MODELS[0]).unlink()
    (packed / "ort.tar.xz").write_bytes(b"0" * (65 * 2**20))
    assert pack.main(["--check", "--out", str(packed)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "no wheel fastapi_offline-1.7.7; " in lines[0]
    assert [line.split()[2] for line in lines[1:3]] == ["fastapi-1,", "fastapi_offline-1,"]
    assert lines[1].endswith("two versions of one stop pip; delete it")
    assert f"{pack.MODELS[0]} of this code" in lines[3]
    assert "and 64 can be carried" in lines[4]


def test_models_of_other_code_are_missing(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack.models_of(packed).rename(packed / "models" / "0123456789ab")
    assert pack.main(["--check", "--out", str(packed)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == len(pack.MODELS)

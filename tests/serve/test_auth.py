"""Keys: who is let in, what is said to the others and when, and that nothing shows a key."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from tests.serve.conftest import Live
from tests.serve.test_logs import serving
from yolo_assigner.serve.errors import ForbiddenError, TooManyAttemptsError, UnauthorizedError
from yolo_assigner.serve.http.auth import (
    MOST_REMEMBERED,
    MOST_WAITING,
    MOST_WRONG,
    Key,
    KeyGuard,
    Keys,
    KeySource,
    RefusalDelay,
    network_of,
)

OLD, NEW, ADMIN = "old-key-0123456789", "new-key-0123456789", "admin-key-0123456789"
KEYS = Keys(KeySource(others=(OLD, NEW)), KeySource(others=(ADMIN,)))
INFER, ADMINISTER = "/v2/models/loss/infer", "/v2/systemsharedmemory/region/x/register"
PATIENCE = 60.0  # seconds for what takes milliseconds


def with_key(key: str, kind: str = "Bearer") -> Headers:
    return Headers({"authorization": f"{kind} {key}"})


def test_every_key_of_a_rotation_is_good() -> None:
    for key in (OLD, NEW):
        found = KEYS.identify(INFER, with_key(key))
        assert found is not None
        assert found.secret == key.encode()
    KEYS.identify("/v1/loss", with_key(OLD, "bearer"))


@pytest.mark.parametrize("path", [INFER, "/v1/loss", "/v2", "/openapi.json", "/docsx", "/metrics", "/nothing"])
def test_no_key_and_a_wrong_one(path: str) -> None:
    for headers in (Headers({}), with_key(""), with_key(OLD, "Basic"), Headers({"authorization": OLD})):
        with pytest.raises(UnauthorizedError, match="Authorization: Bearer"):
            KEYS.identify(path, headers)
    for wrong in (OLD[:-1], OLD + "x", OLD.upper(), ADMIN, "ä" * 20):
        with pytest.raises(ForbiddenError) as caught:
            KEYS.identify(path, with_key(wrong))
        assert wrong not in str(caught.value)


def test_administration_has_keys_of_its_own() -> None:
    KEYS.identify(ADMINISTER, with_key(ADMIN))
    with pytest.raises(ForbiddenError, match="administration"):
        KEYS.identify(ADMINISTER, with_key(OLD))
    # Without any, those of inference do.
    Keys(KeySource(others=(OLD,))).identify(ADMINISTER, with_key(OLD))


def test_health_and_docs_need_none_and_without_keys_nothing_does() -> None:
    for path in ("/v2/health/ready", "/docs", "/docs/docs.js"):
        assert KEYS.identify(path, Headers({})) is None
    assert KEYS.needed
    assert not Keys().needed
    assert Keys().identify(INFER, Headers({})) is None
    with pytest.raises(UnauthorizedError):
        Keys(administration=KeySource(others=(ADMIN,))).identify(ADMINISTER, Headers({}))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# for the workers\n{OLD}\n\n  worker-3@gpu:\t{NEW}  \n{ADMIN}:x\n")
    keys = (Key(OLD.encode(), "keys:2"), Key(NEW.encode(), "worker-3@gpu"), Key(f"{ADMIN}:x".encode(), "keys:5"))
    assert KeySource(path).load() == keys
    assert KeySource(path, (ADMIN,)).load() == (Key(ADMIN.encode(), "environment:1"), *keys)
    assert KeySource().load() == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [("# nothing\n", "has no key"), ("secret\n", "keys:1 must be 16 or more"), ("a: secret\n", "keys:1"),
     (f"{OLD}\nsecret with a space in it\n", "keys:2 must be"), (f"secret name: {OLD}", "a colon and a space"),
     (f"{OLD}\nsecret-of-a-worker:\n", "keys:2 must be"),
     (f"a: {OLD}\nb: {ADMIN}\na: {NEW}\n", "2 keys of the name 'a'")],
)  # fmt: skip
def test_files_that_are_refused_show_no_key(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        KeySource(path).load()
    for key in (OLD, NEW, "secret"):
        assert key not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        KeySource(tmp_path / "none").load()


def test_keys_are_read_again_or_stay(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(OLD)
    keys = Keys(KeySource(path, (ADMIN,)))
    path.write_text(NEW)
    keys.reload()
    for key in (NEW, ADMIN):
        keys.identify(INFER, with_key(key))
    with pytest.raises(ForbiddenError):
        keys.identify(INFER, with_key(OLD))
    for content in ("", "short", f"a: {OLD}\na: {OLD}x", None):
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        with pytest.raises(ValueError, match="key"):
            keys.reload()
        keys.identify(INFER, with_key(NEW))


class Caller:
    """Sends requests to a guard, each with a body that must not be read."""

    def __init__(self, guard: KeyGuard) -> None:
        self._guard = guard

    async def ask(self, key: str | None, address: str, path: str = INFER) -> int:
        """The status of the reply."""
        statuses: list[int] = []

        async def receive() -> Message:
            raise AssertionError("a refused request is not read")

        async def send(message: Message) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        scope = {"type": "http", "path": path, "method": "POST", "headers": headers, "client": (address, 1)}
        await self._guard(scope, receive, send)
        return statuses[0]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_guessing_is_slow_and_good_callers_are_not() -> None:
    """One network tries as many keys as are let, however many connections it has and whether or not it waits."""

    async def check() -> None:
        caller = Caller(KeyGuard(answer, KEYS))
        assert await caller.ask(OLD, "192.0.2.1") == 200
        guesses = [asyncio.create_task(caller.ask(f"guess-{number:016}", "192.0.2.1")) for number in range(200)]
        await asyncio.sleep(0.1)
        assert await caller.ask(OLD, "192.0.2.1") == 200  # it was accepted from there before
        assert await caller.ask(NEW, "192.0.2.2") == 200
        # Were it looked at, whoever guesses would see which one is good.
        assert await caller.ask(NEW, "192.0.2.1") == await caller.ask("guess-of-the-last-key", "192.0.2.1") == 429
        assert not all(guess.done() for guess in guesses)
        statuses = await asyncio.gather(*guesses)
        assert [status for status in statuses if status != 429] == [403] * MOST_WRONG

    asyncio.run(check())


def test_each_refusal_comes_later_and_all_is_forgotten_in_time() -> None:
    async def check() -> None:
        now = [0.0]
        delay = RefusalDelay(lambda: now[0])
        await assert_at_once(delay)
        for least in (0.25, 0.5, 1.0):
            started = time.monotonic()
            await delay.wait("a", None)
            assert time.monotonic() - started >= least
        now[0] += 100
        await assert_at_once(delay)

    async def assert_at_once(delay: RefusalDelay) -> None:
        waiting = asyncio.create_task(delay.wait("a", None))
        for _ in range(5):  # steps of the event loop, in which no time passes
            await asyncio.sleep(0)
        assert waiting.done()
        await waiting

    asyncio.run(check())


def test_one_wrong_key_of_many_workers_locks_nobody_out() -> None:
    """As after a rotation that some have missed, behind a proxy that is not trusted: all have its address."""

    async def check() -> None:
        caller = Caller(KeyGuard(answer, KEYS))
        late = [asyncio.create_task(caller.ask(key, "192.0.2.1")) for key in ("the-key-of-last-year", None) * 15]
        await asyncio.sleep(0.1)
        assert await caller.ask(NEW, "192.0.2.1") == 200
        assert set(await asyncio.gather(*late)) == {401, 403}

    asyncio.run(check())


def test_waiting_refusals_and_what_is_remembered_are_bounded() -> None:
    async def check() -> None:
        delay = RefusalDelay()
        networks = [f"192.0.2.{number}" for number in range(MOST_WAITING + 6)]
        for network in networks:
            await delay.wait(network, None)
        results = await asyncio.gather(*(delay.wait(one, None) for one in networks), return_exceptions=True)
        assert sum(isinstance(result, TooManyAttemptsError) for result in results) == 6
        for number in range(MOST_REMEMBERED + 10):
            delay.let_in(f"n{number}", b"k")
            await delay.wait(f"n{number}", b"w")
        assert len(delay.refused) == len(delay.accepted) == MOST_REMEMBERED

    asyncio.run(check())


@pytest.mark.parametrize(
    ("hosts", "same"),
    [(("192.0.2.1", "::ffff:192.0.2.1"), True), (("192.0.2.1", "192.0.2.2"), False),
     (("::ffff:192.0.2.1", "::ffff:192.0.2.2"), False), (("2001:db8::1", "2001:db8::ffff:0:0:1"), True),
     (("2001:db8::1", "2001:db8:0:1::1"), False), (("fe80::1%eth0", "fe80::2"), True), (("unknown", "-"), False)],
)  # fmt: skip
def test_what_one_caller_has_for_itself(hosts: Sequence[str], same: bool) -> None:
    networks = {network_of({"client": (host, 1)}) for host in hosts}
    assert len(networks) == 2 - same
    assert network_of({"client": None}) == "-"


def status(live: Live, key: str, path: str = "/v2") -> int:
    return live.send("GET", path, headers={"Authorization": f"Bearer {key}"}).status


def wait_for(log: Path, text: str) -> str:
    """Read the log until it has a text."""
    deadline = time.monotonic() + PATIENCE
    while text not in (found := log.read_text()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_a_live_server_reads_them_again_and_its_log_names_them(assigner_dir: Path, tmp_path: Path) -> None:
    path, log = tmp_path / "keys.txt", tmp_path / "log"
    path.write_text(f"worker-3: {OLD}\n{ADMIN}\n")
    words = ("--api-key-file", str(path), "--log-format", "json", "--log-level", "debug", "--no-engine-process")
    with log.open("wb") as file, serving(assigner_dir, *words, output=file.fileno()) as live:
        assert [status(live, key, "/v2?named") for key in (OLD, ADMIN, NEW)] == [200, 200, 403]
        path.write_text(f"worker-3-of-may: {NEW}\n")
        live.process.send_signal(signal.SIGHUP)
        wait_for(log, "keys reloaded")
        assert [status(live, key, "/nothing") for key in (NEW, OLD)] == [404, 403]
        path.write_text("")
        live.process.send_signal(signal.SIGHUP)
        wait_for(log, "keys not reloaded")
        assert status(live, NEW) == 200
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(PATIENCE) == 0
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert "has no key" in next(line["message"] for line in lines if "keys not reloaded" in line["message"])
    asked = [line for line in lines if line["logger"] == "serve.access" and line["path"] in ("/v2", "/nothing")]
    names = ["worker-3", "keys.txt:2", "-", "worker-3-of-may", "-", "worker-3-of-may"]
    assert [line["key"] for line in asked] == names
    assert asked[0]["message"].endswith(" with key worker-3")
    assert not any(key in text for key in (OLD, NEW, ADMIN))


def test_a_live_server_refuses_later_and_serves_at_once(assigner_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(OLD)
    words = ("--api-key-file", str(path), "--no-engine-process")
    with serving(assigner_dir, *words, output=subprocess.DEVNULL) as live:
        with ThreadPoolExecutor(1) as pool:
            started = time.monotonic()
            guesses = pool.map(lambda number: status(live, f"guess-{number:016}"), range(5))
            while time.monotonic() - started < 1:
                asked = time.monotonic()
                assert (status(live, OLD), status(live, "", "/v2/health/ready")) == (200, 200)
                assert time.monotonic() - asked < 1
            assert list(guesses) == [403] * 5
        assert time.monotonic() - started > 2

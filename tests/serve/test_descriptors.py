"""File descriptors that run out: requests are answered 503 and served again as soon as there are some."""

from __future__ import annotations

import http.client
import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.serve.conftest import Live, assigner_inputs, binary_rows, start, stop, worker_of
from tests.serve.hostile.requests import Request, good_requests
from tests.serve.hostile.wire import Wire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are set from outside the process")
GOOD: Request = good_requests()[-1]
LARGE, SMALL = 32, 16  # images, of which the inputs take more and less than a message between the processes
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
REGION = "/v2/systemsharedmemory/region/few"


@pytest.fixture(scope="module")
def server(assigner_dir: Path) -> Iterator[Live]:
    """A server whose engines have a process of their own."""
    live = start("--artifacts", assigner_dir, "--client-timeout", "2", "--shared-memory", "few")
    yield live
    assert stop(live) == 0


@contextmanager
def descriptors(pid: int, more: int) -> Iterator[None]:
    """Let a process open so many files more, and not one above those that it has."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    first_free = next(number for number in count() if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free + more, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def connected(live: Live) -> Iterator[http.client.HTTPConnection]:
    """A connection that has its descriptor already."""
    connection = http.client.HTTPConnection(live.host, live.port, timeout=120)
    connection.request("GET", "/v2/health/live")
    assert connection.getresponse().read() is not None
    yield connection
    connection.close()


def answer(connection: http.client.HTTPConnection, path: str, body: bytes, header_length: int = 0) -> tuple[int, str]:
    """Status, and the reason where there is one."""
    headers = {"Inference-Header-Content-Length": str(header_length)} if header_length else {}
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    text = response.read()
    return response.status, "" if response.status == 200 else json.loads(text)["error"]


def infer(connection: http.client.HTTPConnection, images: int) -> tuple[int, str]:
    """Ask for outputs in JSON, which are larger than a message in any case."""
    rows, blob = binary_rows(assigner_inputs(images))
    text = json.dumps({"inputs": rows}).encode()
    assert (len(text + blob) > 2**16) == (images == LARGE)
    return answer(connection, "/v2/models/assigner/infer", text + blob, len(text))


@pytest.mark.parametrize("images", [LARGE, SMALL])
@pytest.mark.parametrize("who", ["server", "engines"])
def test_no_descriptor_for_a_body_or_a_reply(assigner_dir: Path, who: str, images: int) -> None:
    """Either process needs one for what is large: to make memory of it and to get that of the other."""
    live = start("--artifacts", assigner_dir)
    engines = worker_of(live)
    try:
        with connected(live) as connection:
            with descriptors(live.process.pid if who == "server" else engines, 0):
                for _ in range(3):
                    status, reason = infer(connection, images)
                    assert status == 503, reason
                    assert "no file descriptors" in reason
            for size in (images, LARGE, SMALL):
                assert infer(connection, size) == (200, "")
        assert worker_of(live) == engines
    finally:
        assert stop(live) == 0


def test_no_descriptor_for_a_region_of_shared_memory(server: Live) -> None:
    path = Path(f"/dev/shm/few-{os.getpid()}")  # noqa: S108
    path.write_bytes(bytes(64))
    body = json.dumps({"key": path.name, "offset": 0, "byte_size": 64}).encode()
    try:
        with connected(server) as connection:
            with descriptors(worker_of(server), 0):
                status, reason = answer(connection, f"{REGION}/register", body)
                assert (status, "no file descriptors" in reason) == (503, True)
            assert answer(connection, f"{REGION}/register", body) == (200, "")
            assert answer(connection, f"{REGION}/unregister", b"") == (200, "")
    finally:
        path.unlink()


def test_connections_that_take_the_last_descriptors_are_answered(server: Live) -> None:
    """Before there is none to accept a connection with, which would end without a word."""
    with ExitStack() as stack:
        stack.enter_context(descriptors(server.process.pid, 60))
        replies = []
        for _ in range(100):
            wire = stack.enter_context(Wire(server.port))
            # The second request stays under way. It has begun when the first is answered: without one under way, a
            # connection would be closed to make room for the next.
            wire.write([LIVE + GOOD.head(2**10) + b"{"])
            replies.append(wire.reply())
        assert {reply.status for reply in replies} == {200, 503}
        assert all(b"no file descriptors" in reply.body for reply in replies if reply.status == 503)
    assert server.send("GET", "/v2/health/live").status == 200

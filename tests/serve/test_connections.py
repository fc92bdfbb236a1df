"""What one connection may send ahead, how many connections there may be, and how long unread replies are kept."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from benchmarks.hostile.requests import Request
from benchmarks.hostile.targets import good_requests
from benchmarks.hostile.wire import NoReplyError, Wire
from serve.http.connection import protocol
from serve.http.room import MOST_HELD, Room
from tests.serve.conftest import ROOT, Live, start, stop

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
GOOD: Request = good_requests()[0]
PATIENCE, MOST = 1.0, 8
MIB = 2**20


@pytest.fixture(scope="module")
def few(artifacts_dir: Path) -> Iterator[Live]:
    """A server for few connections that has little patience."""
    limits = ("--max-connections", str(MOST), "--client-timeout", str(PATIENCE))
    server = start("--artifacts", artifacts_dir, "--no-engine-process", *limits)
    yield server
    assert stop(server) == 0


def resident(live: Live) -> int:
    """Bytes of memory that a server has."""
    pages = Path(f"/proc/{live.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def push(connection: socket.socket, data: bytes, seconds: float) -> int:
    """Send as much as the server takes in some time, and return how much that was."""
    sent, end = 0, time.monotonic() + seconds
    connection.settimeout(0.05)
    while sent < len(data) and time.monotonic() < end:
        with suppress(TimeoutError):
            sent += connection.send(data[sent : sent + 2**18])
    return sent


def take(connection: socket.socket, seconds: float) -> None:
    """Read what comes in some time."""
    end = time.monotonic() + seconds
    connection.settimeout(0.05)
    while time.monotonic() < end:
        with suppress(TimeoutError):
            connection.recv(2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_requests_that_are_sent_ahead_do_not_fill_the_memory(few: Live) -> None:
    """Each would take kilobytes once it is parsed; others are served all the while."""
    flood = LIVE * (16 * MIB // len(LIVE))
    before = resident(few)
    with socket.create_connection((few.host, few.port)) as connection:
        sent, slowest = 0, 0.0
        for _ in range(6):
            sent += push(connection, flood[sent:], 0.3)
            began = time.monotonic()
            assert few.send("GET", "/v2/health/live").status == 200
            slowest = max(slowest, time.monotonic() - began)
            take(connection, 0.3)
        grown = resident(few) - before
    assert sent > 2**16
    assert grown < 16 * MIB, f"{sent} bytes of requests made the server larger by {grown}"
    assert slowest < 1.0


def test_every_request_that_is_sent_ahead_is_answered_in_its_order(few: Live) -> None:
    """Bodies that hold empty lines and heads, whole or cut anywhere, in front of others: all in their places."""
    body = b'{"x": "' + LIVE * 3 + b'\r\n\r\n\n\n"}'
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:50], body[50:])) + b"0\r\n\r\n"
    post = b"POST /v9 HTTP/1.1\r\nHost: localhost\r\n"
    rounds = [
        (LIVE, 200),
        (post + b"Content-Length: %d\r\n\r\n" % len(body) + body, 404),
        (post + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, 404),
        (GOOD.head() + GOOD.body, 200),
        (b"\r\n\r\n" + LIVE, 200),
    ]
    whole, statuses = b"".join(text for text, _ in rounds), [status for _, status in rounds]
    for size in (len(whole) * 40, 4099, 7):
        count = 40 if size > 7 else 1
        data = whole * count
        with Wire(few.port) as wire:
            wire.write([data[place : place + size] for place in range(0, len(data), size)])
            assert [wire.reply().status for _ in range(count * len(rounds))] == statuses * count


def test_thousands_of_requests_in_one_piece(few: Live) -> None:
    with Wire(few.port) as wire:
        wire.write([LIVE * 4000])
        assert {wire.reply().status for _ in range(4000)} == {200}
        wire.write([LIVE])
        assert wire.reply().status == 200


@contextmanager
def small_server(reply: bytes, room: Room) -> Iterator[int]:
    """A server in this process that gives one reply and keeps little of it in the system; its port."""

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await asyncio.sleep(0.01)
        headers = [(b"content-length", str(len(reply)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**12)
        config = uvicorn.Config(app, log_config=None, lifespan="off", http=protocol(PATIENCE, room))
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def test_all_connections_together_hold_no_more_than_there_is_room_for() -> None:
    """What is too much is dropped, and its connection closed behind the requests that were parsed."""
    room, count = Room(), 100
    with small_server(b"", room) as port:
        for others, replies in ((0, count), (MOST_HELD, 2)):
            room.held = others
            with Wire(port) as wire:
                wire.write([LIVE * count])
                assert [wire.reply().status for _ in range(replies)] == [200] * replies
                assert replies == count or wire.ended()
            assert room.held == others


def test_a_small_reply_that_nobody_takes_is_not_kept() -> None:
    """Even one that is too small to hold the application up."""
    with small_server(bytes(40_000), Room()) as port, Wire(port, room=2**12) as wire:
        wire.write([LIVE])
        time.sleep(2.5 * PATIENCE)
        with pytest.raises(NoReplyError):
            wire.reply()


def test_who_does_not_read_is_cut_off(few: Live) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Wire(few.port, room=2**12) as wire, pytest.raises(ConnectionError):
        push(wire.socket, request * (MIB // 4), 30)


def test_the_connection_that_was_unused_longest_makes_room(few: Live) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(few.port)) for _ in range(MOST)]
        wires[0].write([LIVE])  # so that the second one has waited longest
        assert wires[0].reply().status == 200
        wires[2].write([LIVE[:9]])  # a head that does not come to an end is no use
        wires.append(stack.enter_context(Wire(few.port)))
        wires[-1].write([LIVE])
        assert wires[-1].reply().status == 200
        assert wires[1].ended()
        wires[0].write([LIVE])
        assert wires[0].reply().status == 200


def test_more_connections_than_there_may_be_are_answered_503(few: Live) -> None:
    begun = GOOD.head(2**20)
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(few.port)) for _ in range(MOST)]
        for wire in wires:
            wire.write([begun])
        time.sleep(PATIENCE / 5)
        refused = few.send("GET", "/v2/health/live")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert refused.error == f"{MOST} connections have requests under way; try again in a moment"
        assert {wire.reply().status for wire in wires} == {408}
    assert few.send("GET", "/v2/health/live").status == 200


def test_no_more_connections_than_half_of_the_descriptors(artifacts_dir: Path) -> None:
    command = [sys.executable, "-m", "serve", "--port", "0", "--no-engine-process", "--artifacts", str(artifacts_dir)]
    limited = ["sh", "-c", 'ulimit -n 128; exec "$@"', "sh", *command]
    with ExitStack() as stack:
        pipe = subprocess.PIPE
        process = stack.enter_context(subprocess.Popen(limited, stdout=pipe, stderr=pipe, text=True, cwd=ROOT))
        stack.callback(process.kill)
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rsplit(":", 1)[1])
        wires = [stack.enter_context(Wire(port)) for _ in range(80)]
        wires[-1].write([LIVE])
        assert wires[-1].reply().status == 200
        assert wires[0].ended()
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert "64 connections at most, of 128 descriptors" in said

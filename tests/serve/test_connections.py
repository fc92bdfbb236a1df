"""What one connection may send ahead, how many connections there may be, and how long unread replies are kept."""

from __future__ import annotations

import asyncio
import json
import logging
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

from tests.exports import exported
from tests.serve.conftest import ROOT, Live, start, stop
from tests.serve.hostile.requests import Request, good_requests
from tests.serve.hostile.wire import NoReplyError, Wire
from yolo_assigner.serve.http.admission import Admission, AdmissionGate
from yolo_assigner.serve.http.connection import MOST_HEAD, protocol
from yolo_assigner.serve.http.limits import MAX_BUFFERED_BYTES, ConnectionLimits
from yolo_assigner.serve.http.metrics import Metrics
from yolo_assigner.serve.http.observe import LINES_A_SECOND, Observer, Refusals
from yolo_assigner.serve.logs import request_id

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
GOOD: Request = good_requests()[0]
PATIENCE, MOST = 1.0, 8
MIB = 2**20


@pytest.fixture(scope="module")
def few() -> Iterator[Live]:
    """A server for few connections that has little patience."""
    limits = ("--max-connections", str(MOST), "--client-timeout", str(PATIENCE))
    server = start("--artifacts", exported("loss", "sparse"), "--no-engine-process", *limits)
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
def small_server(
    reply: bytes, limits: ConnectionLimits, metrics: Metrics | None = None, admission: Admission | None = None
) -> Iterator[int]:
    """A server in this process that gives one reply and keeps little of it in the system; its port."""
    metrics, admission = metrics or Metrics(), admission or Admission(100, MIB)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await asyncio.sleep(0.01)
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", str(len(reply)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**12)
        guarded = protocol(PATIENCE, limits, Refusals(metrics))
        observed = Observer(AdmissionGate(app, admission, MIB), metrics)
        config = uvicorn.Config(observed, log_config=None, lifespan="off", http=guarded)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def test_all_connections_together_hold_no_more_than_there_is_room_for() -> None:
    """What is too much is dropped, and its connection closed behind the requests that were parsed."""
    limits, count = ConnectionLimits(), 100
    with small_server(b"", limits) as port:
        for others, replies in ((0, count), (MAX_BUFFERED_BYTES, 2)):
            limits.buffered_bytes = others
            with Wire(port) as wire:
                wire.write([LIVE * count])
                assert [wire.reply().status for _ in range(replies)] == [200] * replies
                assert replies == count or wire.ended()
            assert limits.buffered_bytes == others


def test_a_small_reply_that_nobody_takes_is_not_kept() -> None:
    """Even one that is too small to hold the application up."""
    with small_server(bytes(40_000), ConnectionLimits()) as port, Wire(port, room=2**12) as wire:
        wire.write([LIVE])
        time.sleep(2.5 * PATIENCE)
        with pytest.raises(NoReplyError):
            wire.reply()


@pytest.mark.parametrize("reads", [True, False])
def test_a_reply_keeps_its_place_until_it_is_taken_or_cut_off(reads: bool) -> None:
    reply, admission = bytes(MIB), Admission(2, 4 * MIB)
    request = b"POST /v1/loss HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n" + bytes(9)
    with small_server(reply, ConnectionLimits(), admission=admission) as port, Wire(port, room=2**12) as wire:
        wire.write([request])
        time.sleep(0.4 * PATIENCE)
        assert (admission.requests, admission.bytes) == (1, len(reply))
        if reads:
            assert wire.reply().body == reply
        end = time.monotonic() + 3 * PATIENCE
        while admission.requests and time.monotonic() < end:
            time.sleep(0.01)
        assert (admission.requests, admission.bytes) == (0, 0)
        if reads:
            wire.write([request])
            assert wire.reply().body == reply


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


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[tuple[str, str]]]:
    """Request id and text of every line of the access log, as they come."""
    lines: list[tuple[str, str]] = []

    def keep(record: logging.LogRecord) -> bool:
        lines.append((request_id.get(), record.getMessage()))
        return True

    caplog.set_level(logging.INFO, "serve.access")
    logger = logging.getLogger("serve.access")
    logger.addFilter(keep)
    yield lines
    logger.removeFilter(keep)


def counted(metrics: Metrics, route: str) -> dict[str, float]:
    """Failures of a route by their reason."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    failures = [sample for sample in samples if sample.name == "yolo_assigner_failures_total"]
    return {sample.labels["reason"]: sample.value for sample in failures if sample.labels["route"] == route}


HEAD = b"GET / HTTP/1.1\r\nX-Request-Id: mine\r\n"
REFUSED = {
    "no HTTP": (b"nonsense\r\n\r\n", 400, "bad_request"),
    "no Host": (HEAD + b"\r\n", 400, "bad_request"),
    "many headers": (HEAD + b"A: b\r\n" * 300, 431, "large_head"),
    "long header": (HEAD + b"A: " + b"b" * 2**17 + b"\r\n\r\n", 431, "large_head"),
    "coding": (HEAD + b"Host: a\r\nTransfer-Encoding: br\r\n\r\n", 501, "unsupported"),
    "slow": (HEAD + b"A: b", 408, "too_slow"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_at_the_connection_is_counted_and_logged_with_its_id(
    name: str, logged: list[tuple[str, str]]
) -> None:
    sent, status, reason = REFUSED[name]
    metrics = Metrics()
    with small_server(b"", ConnectionLimits(), metrics) as port, Wire(port) as wire:
        wire.write([sent[: len(HEAD)], 0.1, sent[len(HEAD) :]])
        reply = wire.reply()
        peer = f"127.0.0.1:{wire.socket.getsockname()[1]}"
        assert wire.ended()
    identifier = reply.headers["x-request-id"]
    assert (reply.status, identifier == "mine") == (status, sent.startswith(HEAD))
    text = json.loads(reply.body)["error"]
    assert logged == [(identifier, f"{status} at the connection from {peer}: {text}")]
    assert counted(metrics, "connection") == {reason: 1}


@pytest.mark.parametrize("pieces", [1, 2, 40])
@pytest.mark.parametrize(
    "line", [b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nA: %s\r\n\r\n"]
)
def test_a_long_head_is_refused_however_it_comes(line: bytes, pieces: int) -> None:
    """Also where all of it lies in the socket before the server reads."""
    for size, status in ((MOST_HEAD - 100, 200), (MOST_HEAD + 1, 431)):
        sent = line % (b"a" * size)
        step = -(-len(sent) // pieces)
        with small_server(b"", ConnectionLimits()) as port, Wire(port) as wire:
            wire.write([part for place in range(0, len(sent), step) for part in (sent[place : place + step], 0.002)])
            assert wire.reply().status == status


def test_a_body_that_breaks_off_is_counted_once_and_keeps_its_id(logged: list[tuple[str, str]]) -> None:
    """The application has the request by then and counts it."""
    metrics = Metrics()
    with small_server(b"", ConnectionLimits(), metrics) as port, Wire(port) as wire:
        wire.write([b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 0.1, b"nonsense\r\n"])
        reply = wire.reply()
        assert reply.status == 400
        assert wire.ended()
    (refused,) = [identifier for identifier, text in logged if "at the connection" in text]
    assert refused == reply.headers["x-request-id"]
    assert counted(metrics, "connection") == {}


def test_what_is_refused_behind_whole_requests_is_counted(logged: list[tuple[str, str]]) -> None:
    metrics = Metrics()
    with small_server(b"", ConnectionLimits(), metrics) as port, Wire(port) as wire:
        wire.write([LIVE + b"nonsense\r\n\r\n"])
        assert wire.reply().status == 200
        assert wire.ended()
    assert counted(metrics, "connection") == {"bad_request": 1}
    assert [text[:21] for _, text in logged] == ["400 at the connection"]


def test_many_refusals_are_counted_and_few_of_them_logged(logged: list[tuple[str, str]]) -> None:
    metrics, count = Metrics(), 10 * LINES_A_SECOND
    with small_server(b"", ConnectionLimits(), metrics) as port:
        began = time.monotonic()
        for _ in range(count):
            with Wire(port) as wire:
                wire.write([b"nonsense\r\n\r\n"])
                assert wire.reply().status == 400
        seconds = int(time.monotonic() - began) + 1
        time.sleep(1.2)
    said = [int(text.split()[0]) for _, text in logged if "more connections were refused" in text]
    lines = len(logged) - len(said)
    assert LINES_A_SECOND <= lines <= LINES_A_SECOND * (seconds + 1)
    assert lines + sum(said) == count == counted(metrics, "connection")["bad_request"]
    assert said


def test_no_more_connections_than_half_of_the_descriptors(assigner_dir: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "yolo_assigner",
        "serve",
        "--port",
        "0",
        "--no-engine-process",
        "--artifacts",
        str(assigner_dir),
    ]
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
        _, said = process.communicate(timeout=120)
    assert "64 connections at most, of 128 descriptors" in said

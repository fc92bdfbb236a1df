"""Callers that take all places or many connections and then send or read next to nothing."""

from __future__ import annotations

import select
import time
from contextlib import ExitStack
from typing import NamedTuple

from tests.serve.hostile.requests import Request, ask
from tests.serve.hostile.wire import NoReplyError, Wire

LARGE = 2**20
BEGUN_SECONDS = 60.0  # within which a large reply begins, whatever else the machine computes
LIVE, LARGE_GET = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in (b"/v2/health/live", b"/openapi.json")
)


class Slow(NamedTuple):
    """Result of one kind of slow caller.

    Attributes:
        what: What the callers did, for the table.
        callers: Number of callers.
        statuses: Number of replies by status; 0 stands for a connection that was closed.
        held: Seconds until a good request was served again, or until all connections were closed.
        fault: What the server did wrong, or None.
    """

    what: str
    callers: int
    statuses: dict[str, int]
    held: float
    fault: str | None


def slow_bodies(port: int, good: Request, places: int, timeout: float) -> Slow:
    """Take all places with bodies that stop; other callers must be served once these have timed out."""
    began = time.monotonic()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(places)]
        for number, wire in enumerate(wires):
            wire.write([good.head(LARGE), good.body[: number % 100]])
        refused = 0
        while (reply := ask(port, good)).status == 503 and time.monotonic() - began < 3 * timeout:
            refused += 1
            time.sleep(0.02)
        held = time.monotonic() - began
        statuses = [_status(wire) for wire in wires]
    fault = None
    if reply.status != 200 or held > timeout + 2:
        fault = f"served again after {held:.1f} s with status {reply.status}"
    if set(statuses) != {408} or not refused:
        fault = f"answers {counted(statuses)} and {refused} refusals"
    return Slow("bodies that stop", places, counted(statuses), held, fault)


def dripping_bodies(port: int, good: Request, places: int, timeout: float) -> Slow:
    """Take all places with bodies of a byte now and then: never silent for long, and never complete."""
    began = time.monotonic()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(places)]
        for wire in wires:
            wire.write([good.head(LARGE)])
        while (reply := ask(port, good)).status == 503 and time.monotonic() - began < 4 * timeout:
            for wire in wires:
                wire.write([b"x"])
            time.sleep(timeout / 10)
        held = time.monotonic() - began
        statuses = [_status(wire) for wire in wires]
    fault = None if reply.status == 200 and held < 2 * timeout + 2 else f"status {reply.status} after {held:.1f} s"
    return Slow("bodies that drip", places, counted(statuses), held, fault)


def slow_heads(port: int, good: Request, callers: int, timeout: float) -> Slow:
    """Open connections whose headers never end; they take no places, so others must be served all the time."""
    began = time.monotonic()
    head = good.head()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(callers)]
        for number, wire in enumerate(wires):
            wire.write([head[: 1 + number % (len(head) - 2)]])
        reply = ask(port, good)
        statuses = [_status(wire) for wire in wires]
        held = time.monotonic() - began
    fault = None
    if reply.status != 200 or set(statuses) != {408} or held > timeout + 2:
        fault = f"status {reply.status}, answers {counted(statuses)}, all closed after {held:.1f} s"
    return Slow("heads that stop", callers, counted(statuses), held, fault)


def slow_readers(port: int, large: Request, callers: int, timeout: float) -> Slow:
    """Request large replies and read none; the server must close these connections."""
    began = time.monotonic()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port, room=2**12)) for _ in range(callers)]
        for wire in wires:
            wire.write([large.head() + large.body])
        for wire in wires:
            select.select([wire.socket], [], [], BEGUN_SECONDS)  # reading would make room for more
        time.sleep(2 * timeout + 1)
        statuses = [0 if _cut_off(wire) else 200 for wire in wires]
        held = time.monotonic() - began
    fault = None if set(statuses) == {0} else f"{counted(statuses)}: some got all of a reply that they did not read"
    return Slow("replies that nobody takes", callers, counted(statuses), held, fault)


def sent_ahead(port: int, callers: int, requests: int) -> Slow:
    """Send all requests before reading the first reply; every one must be answered."""
    began = time.monotonic()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(callers)]
        for wire in wires:
            wire.write([LIVE * requests])
        statuses = [_status(wire) for wire in wires for _ in range(requests)]
    fault = None if set(statuses) == {200} else f"answers {counted(statuses)}"
    return Slow("requests sent ahead", callers, counted(statuses), time.monotonic() - began, fault)


def sent_ahead_unread(port: int, callers: int, timeout: float) -> Slow:
    """Send requests without end and read no reply; the server must cut these callers off and serve others meanwhile."""
    began, slowest = time.monotonic(), 0.0
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port, timeout=0.05, room=2**12)) for _ in range(callers)]
        left = wires.copy()
        while left and time.monotonic() - began < 10 * timeout + 10:
            left = [wire for wire in left if _takes_more(wire)]
            asked = time.monotonic()
            with Wire(port) as other:
                other.write([LIVE])
                status = _status(other)
            slowest = max(slowest, time.monotonic() - asked)
    fault = f"{len(left)} were not cut off" if left else None
    if status != 200 or slowest > 1.0:
        fault = f"status {status} for others, after {slowest:.1f} s"
    return Slow("requests sent ahead, unread", callers, {"0": callers - len(left)}, time.monotonic() - began, fault)


def _takes_more(wire: Wire) -> bool:
    try:
        wire.socket.send(LARGE_GET * 2000)
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def _cut_off(wire: Wire) -> bool:
    try:
        wire.reply()
    except NoReplyError:
        return True
    return False


def _status(wire: Wire) -> int:
    try:
        return wire.reply().status
    except NoReplyError:
        return 0


def counted(statuses: list[int]) -> dict[str, int]:
    """Number of replies by status, in the order of the statuses."""
    return {str(status): statuses.count(status) for status in sorted(set(statuses))}

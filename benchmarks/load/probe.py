"""How fast a loaded server says no: one connection at a time, from a process that does nothing else."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from benchmarks.load.cases import Payload, head_of
from benchmarks.load.client import Plan

PAUSE_SECONDS = 0.02
WAITS = "expect: 100-continue\r\n"  # the client sends its body only when it is told to
URGENT = 5_000  # microseconds


@dataclass
class Probed:
    """What was seen.

    Attributes:
        seconds: By status: from the headers sent to those of the reply. Of 504: from the deadline on.
        admitted: Requests that were let in instead, and hung up then.
        wrong: Answers that nobody should get.
        floor: Seconds that the same takes with a process that does nothing else, on the same busy machine.
    """

    seconds: dict[int, list[float]] = field(default_factory=lambda: {413: [], 503: [], 504: []})
    admitted: int = 0
    wrong: list[str] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)


def probe(plan: Plan, urgent: Payload, expected: bytes, floor: int, results: Connection) -> None:
    """Ask for refusals until the time is over, and send what was seen.

    Args:
        plan: What all clients know.
        urgent: A small request with a deadline of ``URGENT``.
        expected: The body of its reply where it is in time.
        floor: Port of :func:`refuse_all`.
        results: Where to send it.
    """
    seen = Probed()
    while plan.running():
        # Too large for any server; as large as any, so that it is refused where bytes or places are short; too late.
        _ask(plan.port, head_of("loss", plan.limit + 1, WAITS), b"", seen)
        _ask(plan.port, head_of("loss", plan.limit, WAITS), b"", seen)
        _ask(plan.port, urgent.head, b"".join(urgent.body), seen, expected)
        seen.floor.append(_exchange(floor, head_of("loss", plan.limit, WAITS))[1])
        time.sleep(PAUSE_SECONDS)
    results.send(seen)


def refuse_all(listener: socket.socket) -> None:
    """Answer everybody at once, for ever: how fast anybody could be on this machine."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(2**16)
            connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")


def _ask(port: int, head: bytes, body: bytes, seen: Probed, expected: bytes = b"") -> None:
    reply, seconds = _exchange(port, head + body, expected)
    status = int(reply[9:12] or 0)
    if status == 504:
        seconds -= URGENT / 1e6
    if status in seen.seconds:
        seen.seconds[status].append(seconds)
    elif status == 100 and not body:
        seen.admitted += 1
    elif status != 200 or not expected or not reply.endswith(expected):
        seen.wrong.append(f"{status} {reply[:200]!r}")


def _exchange(port: int, request: bytes, expected: bytes = b"") -> tuple[bytes, float]:
    """The beginning of a reply, all of it where it may be a result, and the seconds until it began."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        connection.sendall(request)
        reply = connection.recv(2**20)
        seconds = time.perf_counter() - began
        while expected and reply[9:12] == b"200" and not reply.endswith(expected):
            part = connection.recv(2**20)
            if not part:
                break
            reply += part
        return reply, seconds

"""How fast a loaded server refuses: one connection at a time, from a process that does nothing else."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from benchmarks.common.client import Payload, infer_head
from benchmarks.load.client import Plan

PAUSE_SECONDS = 0.02
EXPECT = "expect: 100-continue\r\n"  # the client waits for permission to send the body
URGENT = 5_000  # microseconds


@dataclass
class Probed:
    """Times of refusals.

    Attributes:
        seconds: Seconds from the request's headers to the reply's, by status; for 504 from the deadline on.
        admitted: Number of requests that were admitted instead, and hung up then.
        wrong: Descriptions of unexpected answers.
        floor: The same seconds with a process that only refuses, on the same busy machine.
    """

    seconds: dict[int, list[float]] = field(default_factory=lambda: {413: [], 503: [], 504: []})
    admitted: int = 0
    wrong: list[str] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)


def probe(plan: Plan, urgent: Payload, expected: bytes, floor: int, results: Connection) -> None:
    """Provoke refusals until the plan ends, and send what was measured.

    Args:
        plan: Instructions.
        urgent: A small request with a deadline of ``URGENT``.
        expected: Body of its reply when it is answered in time.
        floor: Port of :func:`refuse_all`.
        results: Connection that the :class:`Probed` is sent through.
    """
    seen = Probed()
    while plan.running():
        # Over the limit (413); at the limit, refused where bytes or places are short (503); past its deadline (504).
        _ask(plan.port, infer_head("loss", plan.limit + 1, EXPECT), b"", seen)
        _ask(plan.port, infer_head("loss", plan.limit, EXPECT), b"", seen)
        _ask(plan.port, urgent.head, b"".join(urgent.body), seen, expected)
        seen.floor.append(_exchange(floor, infer_head("loss", plan.limit, EXPECT))[1])
        time.sleep(PAUSE_SECONDS)
    results.send(seen)


def refuse_all(listener: socket.socket) -> None:
    """Refuse every connection at once, for ever: the least time that a refusal takes on this machine."""
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
    """Read the beginning of a reply, or all of it where it may be a result, and the seconds until it began."""
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

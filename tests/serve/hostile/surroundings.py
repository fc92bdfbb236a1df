"""Servers in hostile surroundings: a log that is not read, or too little memory. Linux only."""

from __future__ import annotations

import os
import random
import select
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.control_group import inside
from tests.serve.hostile.judge import Judge, refusal_fault
from tests.serve.hostile.requests import Request, ask, draft, good_requests, inputs_of
from tests.serve.hostile.slow_callers import LIVE, Slow, counted
from tests.serve.hostile.wire import NoReplyError, Reply, Wire
from tests.served import Served, processes, serving
from yolo_assigner.serve.settings import PARTS, Settings

MIB = 2**20
PATH_BYTES = 2000  # length of a refused path, all of which is logged
HEALTH_SECONDS = 2.0  # longest health check while the log is not read
STOP_SECONDS = 10.0
GROUP_BYTES = 600 * MIB
REPLY_SECONDS = 120.0  # longest wait for an answer when memory is short
# The limits of a machine with enough memory; by default they follow the memory of the group.
LARGE_LIMITS = tuple(f"--{name.replace('_', '-')}={Settings.model_fields[name].default}" for name in PARTS)


class Short(NamedTuple):
    """A server with too little memory, and what must happen.

    Attributes:
        what: Name for the table.
        words: Arguments of the server's command line.
        images: Number of images of 640 pixels in a large request, 2.25 MB each.
        refusals: Statuses that callers may get in place of an answer.
        must: Status that at least one large request must get.
        ends: Whether the system must have killed the engine process.
    """

    what: str
    words: tuple[str, ...]
    images: int
    refusals: frozenset[int]
    must: int
    ends: bool


SHORT = (
    Short("memory too short for the limits", LARGE_LIMITS, 32, frozenset({500, 503}), 500, True),
    Short("limits that follow the memory", (), 16, frozenset({503}), 200, False),
)


def unread_log(artifacts: Path, requests: int) -> Slow:
    """Fill a log that is not read with refused requests: the server must answer, and then stop in time."""
    began = time.monotonic()
    with _unread_pipe() as errors, serving(artifacts, "--threads", "1", errors=errors) as server:
        statuses, slowest = _refused(server.port, requests)
        stalled = not select.select((), (errors,), (), 0)[1]
        reply = _answer(server.port, good_requests()[0])
        fault = _stop_fault(server)
    if set(statuses) != {404} or reply is None or reply.status != 200 or slowest > HEALTH_SECONDS:
        good = 0 if reply is None else reply.status
        fault = f"answers {counted(statuses)}, {good} for a good request, health check of {slowest:.1f} s"
    elif not stalled:
        fault = "the pipe has room left: this has shown nothing; send more requests"
    return Slow("log that nobody reads", 1, counted(statuses), time.monotonic() - began, fault)


@contextmanager
def _unread_pipe() -> Iterator[int]:
    """Open a pipe that is not read, and yield its writing end."""
    out, into = os.pipe()
    try:
        yield into
    finally:
        os.close(into)
        os.close(out)


def _stop_fault(server: Served) -> str | None:
    """Stop a server and tell what is wrong with its end, or None."""
    began = time.monotonic()
    try:
        code = server.stop()
    except subprocess.TimeoutExpired as error:
        return f"it does not end: {error}"
    took = time.monotonic() - began
    return f"it ended with code {code} after {took:.1f} s" if code or took > STOP_SECONDS else None


def _refused(port: int, requests: int) -> tuple[list[int], float]:
    """Request a path that does not exist: the statuses, and the longest time in seconds of health checks between."""
    statuses, slowest = [], 0.0
    head = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"n" * PATH_BYTES)
    try:
        with Wire(port) as wire:
            for number in range(requests):
                wire.write([head])
                statuses.append(wire.reply().status)
                if number % 50 == 0:
                    asked = time.monotonic()
                    with Wire(port) as other:
                        other.write([LIVE])
                        other.reply()
                    slowest = max(slowest, time.monotonic() - asked)
    except NoReplyError:
        return [*statuses, 0], slowest
    return statuses, slowest


def short_memory(artifacts: Path, judge: Judge, group: Path, short: Short, callers: int) -> Slow:
    """Send large requests to a server in a small control group; afterwards it must answer as before.

    Args:
        artifacts: Folder of the exported models.
        judge: Checks the answers.
        group: Folder of the control group.
        short: The server, and what must happen.
        callers: Number of large requests at the same time.
    """
    began = time.monotonic()
    rng = random.Random(short.what)  # noqa: S311
    large = draft("loss_grad", inputs_of("loss_grad", rng, short.images, 20, 640), rng, 1.0)
    large.document["parameters"] = {"binary_data_output": True}
    words = ("--threads", "1", "--log-level", "critical", *short.words)
    with serving(artifacts, *words, through=inside(group)) as server:
        engines = processes(server.process.pid)[1:]
        statuses, fault = _together(server.port, judge, large.request(), short, callers)
        fault = _fault_afterwards(server, judge, engines, short.ends) or fault
        fault = fault or _stop_fault(server)
    return Slow(short.what, callers, counted(statuses), time.monotonic() - began, fault)


def _together(port: int, judge: Judge, large: Request, short: Short, callers: int) -> tuple[list[int], str | None]:
    """Send large and small requests at the same time: the statuses of the large ones, and what is wrong or None."""
    requests = [large] * callers + good_requests() * 4
    with ThreadPoolExecutor(len(requests)) as pool:
        replies = list(pool.map(lambda request: _answer(port, request), requests))
    statuses = [0 if reply is None else reply.status for reply in replies[:callers]]
    pairs = zip(requests, replies, strict=True)
    faults = [fault for pair in pairs if (fault := _fault(judge, *pair, short.refusals)) is not None]
    if short.must not in statuses:
        faults.append(f"answers {counted(statuses)}, none of which is {short.must}: another limit was met")
    return statuses, "; ".join(faults) or None


def _answer(port: int, request: Request) -> Reply | None:
    try:
        return ask(port, request, REPLY_SECONDS)
    except NoReplyError:
        return None


def _fault(judge: Judge, request: Request, reply: Reply | None, refusals: frozenset[int]) -> str | None:
    if reply is None:
        return "no reply"
    return judge.fault(request, reply) if reply.status == 200 else refusal_fault(reply, refusals)


def _fault_afterwards(server: Served, judge: Judge, engines: list[int], ends: bool) -> str | None:
    """Tell what is wrong with the server afterwards, or None."""
    try:
        server.wait_until_ready()
    except RuntimeError as error:
        return f"after it, {error}; code {server.process.poll()}"
    for request in good_requests():
        if (fault := _fault(judge, request, _answer(server.port, request), frozenset())) is not None:
            return f"after it, {fault}"
    if (processes(server.process.pid)[1:] != engines) != ends:
        return f"the engine process has {'not ' if ends else ''}ended"
    return None

"""The queue before an engine: which jobs its thread takes next, and which of them together."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from yolo_assigner.serve.engine.merge import Request
from yolo_assigner.serve.tensors.datatypes import Array


class BatchLimits(NamedTuple):
    """How far requests are put together.

    Attributes:
        images: Most images of one call of the engine; with 1, nothing is put together.
        seconds: Longest wait of a request for others, while the engine has nothing else to do.
        work_bytes: Most memory that a call may need, as :func:`yolo_assigner.serve.engine.work.most_work` judges it.
    """

    images: int = 1
    seconds: float = 0.0
    work_bytes: int = 2**32


class Done(NamedTuple):
    """What came out of the engine's thread for one request.

    Attributes:
        arrays: Its outputs.
        began_ns: When the engine began with it, by ``time.monotonic_ns``.
        ended_ns: When it was done.
    """

    arrays: dict[str, Array]
    began_ns: int
    ended_ns: int


@dataclass(eq=False)
class Job:
    """A request that waits for the engine.

    Attributes:
        request: What to compute.
        likeness: Jobs of one likeness may be computed together; None: with no other.
        work_bytes: Memory that it may need.
        wait_until: It is not to wait for others after this, by ``time.monotonic``.
        future: Where its outcome goes; cancelled when nobody waits any more.
        on_begun: Told when the engine begins with it, in its thread.
    """

    request: Request
    likeness: Hashable = None
    work_bytes: int = 0
    wait_until: float = math.inf
    future: Future[Done] = field(default_factory=Future)
    on_begun: Callable[[], None] | None = None


class JobQueue:
    """Jobs in the order of their coming. Filled by any thread, emptied by the engine's.

    Args:
        limits: How far jobs are put together.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Put a job at the end."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def discard(self, job: Job) -> None:
        """Give a job up, and its inputs back, unless the engine has begun with it."""
        if not job.future.cancel():
            return
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            self._changed.notify()  # others may be waited for in its name alone

    def take(self) -> list[Job]:
        """The jobs that are to be computed next, together, marked as running.

        Waits for others only while there is something to compute, and nothing else to do.

        Returns:
            One or more; none when all were cancelled, or had been taken together with an earlier one.
        """
        with self._changed:
            if not self._waiting:
                return []
            jobs = [self._waiting.popleft()]
            until = time.monotonic() + self._limits.seconds
            while self._gather(jobs):
                left = min(until, *(job.wait_until for job in jobs)) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
        return [job for job in jobs if job.future.set_running_or_notify_cancel()]

    def close(self) -> None:
        """Cancel what waits."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()

    def _gather(self, jobs: list[Job]) -> bool:
        """Add the waiting jobs that fit.

        Returns:
            Whether to wait for more: there is room, and nothing else waits.
        """
        if jobs[0].likeness is None:
            return False
        others, full = deque[Job](), not self._has_room(jobs)
        for job in self._waiting:
            alike = job.likeness == jobs[0].likeness
            full = full or (alike and not self._fits([*jobs, job]))  # nobody is overtaken by one who is alike
            (jobs if alike and not full else others).append(job)
        self._waiting = others
        return not (others or self._closed or jobs[0].future.cancelled()) and self._has_room(jobs)

    def _fits(self, jobs: list[Job]) -> bool:
        images, work = sum(job.request.images for job in jobs), sum(job.work_bytes for job in jobs)
        return images <= self._limits.images and work <= self._limits.work_bytes

    def _has_room(self, jobs: list[Job]) -> bool:
        return sum(job.request.images for job in jobs) < self._limits.images

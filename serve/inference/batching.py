"""The queue before a model, which decides what its engine computes next and which requests share a call."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from yolo_assigner.serve.inference.merging import Request
from yolo_assigner.serve.wire.dtypes import Array


class BatchLimits(NamedTuple):
    """Limits of dynamic batching.

    Attributes:
        images: Most images of one call; 1 switches dynamic batching off.
        seconds: Longest time that a request waits for others while the engine is idle.
        memory_bytes: Most memory of one call, as
            :func:`yolo_assigner.serve.inference.memory_estimate.memory_bound` estimates it.
    """

    images: int = 1
    seconds: float = 0.0
    memory_bytes: int = 2**32


class Done(NamedTuple):
    """The outcome of one request.

    Attributes:
        arrays: Its outputs.
        began_ns: When the engine's call began, by ``time.monotonic_ns``.
        ended_ns: When that call ended.
    """

    arrays: dict[str, Array]
    began_ns: int
    ended_ns: int


@dataclass(eq=False)
class Job:
    """A queued request.

    Attributes:
        request: What to compute.
        batch_key: Jobs of equal keys may share a call; None: this one is computed alone.
        memory_bytes: Memory that computing it may need.
        wait_until: When to stop waiting for others, by ``time.monotonic``.
        future: Receives the outcome; cancelled when the caller gives up.
        on_begun: Called in the engine's thread when computing begins.
    """

    request: Request
    batch_key: Hashable = None
    memory_bytes: int = 0
    wait_until: float = math.inf
    future: Future[Done] = field(default_factory=Future)
    on_begun: Callable[[], None] | None = None


class JobQueue:
    """Jobs in the order of arrival. Any thread adds jobs; the engine's thread takes them.

    Args:
        limits: Limits of dynamic batching.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Append a job."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def discard(self, job: Job) -> None:
        """Cancel and remove a job, unless the engine has begun with it."""
        if not job.future.cancel():
            return
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            self._changed.notify()  # the engine may be waiting for others only to share a call with this job

    def take(self) -> list[Job]:
        """Take the jobs of the next call and mark them as running.

        Waits for more jobs only while there is one to compute and no job of another batch key waits.

        Returns:
            One or more jobs; none when all were cancelled, or were taken together with an earlier one.
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
        """Cancel all queued jobs."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()

    def _gather(self, jobs: list[Job]) -> bool:
        """Move the waiting jobs that fit into one call to ``jobs``.

        Returns:
            Whether to wait for more: the call has room, and no other job waits.
        """
        if jobs[0].batch_key is None:
            return False
        others, full = deque[Job](), not self._has_room(jobs)
        for job in self._waiting:
            alike = job.batch_key == jobs[0].batch_key
            full = full or (alike and not self._fits([*jobs, job]))  # no job overtakes another of its batch key
            (jobs if alike and not full else others).append(job)
        self._waiting = others
        return not (others or self._closed or jobs[0].future.cancelled()) and self._has_room(jobs)

    def _fits(self, jobs: list[Job]) -> bool:
        images, memory = sum(job.request.images for job in jobs), sum(job.memory_bytes for job in jobs)
        return images <= self._limits.images and memory <= self._limits.memory_bytes

    def _has_room(self, jobs: list[Job]) -> bool:
        return sum(job.request.images for job in jobs) < self._limits.images

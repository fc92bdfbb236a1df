"""The queue before an engine: which jobs its thread takes next, and which of them together."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.inference.memory_estimate import memory_bound
from yolo_assigner.serve.inference.merging import (
    MERGEABLE,
    Request,
    batch_key,
    check_batch_invariance,
    computed_outputs,
    merge,
    split,
)
from yolo_assigner.serve.inference.runners.base import Runner
from yolo_assigner.serve.wire.dtypes import Array


class BatchLimits(NamedTuple):
    """How far requests are put together.

    Attributes:
        images: Most images of one call of the engine; with 1, nothing is put together.
        seconds: Longest wait of a request for others, while the engine has nothing else to do.
        work_bytes: Most memory that a call may need, estimated by
            :func:`yolo_assigner.serve.inference.memory_estimate.memory_bound`.
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
        batch_key: Jobs of one batch_key may be computed together; None: with no other.
        work_bytes: Memory that it may need.
        wait_until: It is not to wait for others after this, by ``time.monotonic``.
        future: Where its outcome goes; cancelled when nobody waits any more.
        on_begun: Told when the engine begins with it, in its thread.
    """

    request: Request
    batch_key: Hashable = None
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
        if jobs[0].batch_key is None:
            return False
        others, full = deque[Job](), not self._has_room(jobs)
        for job in self._waiting:
            alike = job.batch_key == jobs[0].batch_key
            full = full or (alike and not self._fits([*jobs, job]))  # nobody is overtaken by one who is alike
            (jobs if alike and not full else others).append(job)
        self._waiting = others
        return not (others or self._closed or jobs[0].future.cancelled()) and self._has_room(jobs)

    def _fits(self, jobs: list[Job]) -> bool:
        images, work = sum(job.request.images for job in jobs), sum(job.work_bytes for job in jobs)
        return images <= self._limits.images and work <= self._limits.work_bytes

    def _has_room(self, jobs: list[Job]) -> bool:
        return sum(job.request.images for job in jobs) < self._limits.images


logger = logging.getLogger("serve")


class Batching:
    """One request a call, or several where that changes none of their bits.

    Args:
        contract: The model's.
        runner: What computes it.
        limits: How far requests are put together.
        on_called: Told of every call of the runner for requests: images, nanoseconds.

    Attributes:
        on: Requests are put together; decided by a trial when the model is loaded.
        limits: As given.
    """

    def __init__(
        self, contract: Contract, runner: Runner, limits: BatchLimits, on_called: Callable[[int, int], None]
    ) -> None:
        self.on = False
        self.limits = limits
        self._contract = contract
        self._runner = runner
        self._on_called = on_called

    def load(self) -> None:
        """Bring the runner up, and find out whether it computes requests together as it computes them alone."""
        self._runner.load()
        if self.limits.images <= 1:
            return
        name = self._contract.name
        if self._contract.kind not in MERGEABLE:
            logger.info("model %s: its requests are not put together, images of one depend on each other", name)
            return
        reason = check_batch_invariance(self._runner, self._contract, self.limits.images)
        self.on = reason is None
        if reason is not None:
            logger.warning("model %s: its requests are not put together: %s", name, reason)

    def job(self, request: Request, deadline: float | None) -> Job:
        """A request as it is queued. It may spend half of its time with waiting for others."""
        if not self.on:
            return Job(request)
        now = time.monotonic()
        wait_until = math.inf if deadline is None else now + (deadline - now) / 2
        return Job(request, batch_key(request), memory_bound(self._contract, request.inputs), wait_until)

    def compute(self, requests: Sequence[Request]) -> list[dict[str, Array] | Exception]:
        """Compute requests of one batch_key.

        Returns:
            For each its outputs, or what it failed with. When all together fail, each is tried alone.
        """
        try:
            return list(self._together(requests) if self.on else self._alone(requests))
        except Exception as error:
            if len(requests) == 1:
                return [error]
            name, count = self._contract.name, len(requests)
            logger.warning("model %s: %d requests failed together (%s), each is tried alone", name, count, error)
        return [outcome for request in requests for outcome in self.compute([request])]

    def _alone(self, requests: Sequence[Request]) -> list[dict[str, Array]]:
        (request,) = requests
        return [self._call(request.inputs, request.outputs)]

    def _together(self, requests: Sequence[Request]) -> list[dict[str, Array]]:
        computed = self._call(merge(requests), computed_outputs(requests[0].outputs))
        return split(self._contract, requests, computed)

    def _call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        began = time.monotonic_ns()
        arrays = self._runner.infer(inputs, outputs)
        self._on_called(len(inputs["gt_bboxes"]), time.monotonic_ns() - began)
        return arrays

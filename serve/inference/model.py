"""One model: its runner, the thread that calls it, and the queue of requests before it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.errors import BadRequestError, InferenceError, NotReadyError, ServeError, TooLateError
from yolo_assigner.serve.inference.batching import BatchLimits, Done, Job, JobQueue
from yolo_assigner.serve.inference.memory_estimate import memory_bound
from yolo_assigner.serve.inference.merging import (
    BATCHABLE_KINDS,
    Request,
    batch_key,
    check_batch_invariance,
    computed_outputs,
    merge,
    split,
)
from yolo_assigner.serve.inference.runners.base import Runner, UnfitRequestError
from yolo_assigner.serve.inference.stats import ModelStats
from yolo_assigner.serve.system import lower_thread_priority
from yolo_assigner.serve.wire.dtypes import Array

logger = logging.getLogger("serve")


class Model:
    """One model and the thread that calls its runner.

    Args:
        contract: Inputs, outputs and hyper-parameters.
        runner: Computes the outputs.
        limits: Limits of dynamic batching.

    Attributes:
        contract: As given.
        limits: As given.
        ready: Whether the model is loaded.
        dynamic_batching: Whether concurrent requests may be computed in one call; decided when the model is loaded.
        stats: Counters since the server started.
        runner: As given.
    """

    def __init__(self, contract: Contract, runner: Runner, limits: BatchLimits = BatchLimits()) -> None:  # noqa: B008
        self.contract = contract
        self.limits = limits
        self.ready = False
        self.dynamic_batching = False
        self.stats = ModelStats()
        self.runner = runner
        self._queue = JobQueue(limits)
        self._call_began_ns: int | None = None
        # A thread of its own: calls wait here and not in a pool that others need.
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=f"engine-{contract.name}", initializer=lower_thread_priority
        )

    @property
    def platform(self) -> str:
        """Triton's name of the runtime; empty until a runner is chosen."""
        return self.runner.platform

    def seconds_of_call(self) -> float:
        """How long the current call of the runner has taken; 0 when there is none."""
        began = self._call_began_ns
        return 0.0 if began is None else (time.monotonic_ns() - began) / 1e9

    async def load(self) -> None:
        """Load the runner, and decide on dynamic batching."""
        self._loop = asyncio.get_running_loop()
        self.dynamic_batching = await self._loop.run_in_executor(self._thread, self._load_runner)
        self.ready = True

    def _load_runner(self) -> bool:
        """In the engine's thread: load the runner and return whether its requests may be batched."""
        self.runner.load()
        if self.limits.images <= 1:
            return False
        name = self.contract.name
        if self.contract.kind not in BATCHABLE_KINDS:
            logger.info("model %s: its requests are not put together, images of one depend on each other", name)
            return False
        reason = check_batch_invariance(self.runner, self.contract, self.limits.images)
        if reason is not None:
            logger.warning("model %s: its requests are not put together: %s", name, reason)
        return reason is None

    async def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        deadline: float | None = None,
        on_begun: Callable[[], None] | None = None,
    ) -> dict[str, Array]:
        """Compute outputs. Cancelling the caller dequeues its request.

        Args:
            inputs: As :func:`yolo_assigner.serve.detection.validate.check_inputs` returns them.
            outputs: Names of outputs that exist.
            deadline: When computing must have begun, by ``time.monotonic``; None: no limit.
            on_begun: Called in the engine's thread when computing begins.

        Raises:
            NotReadyError: The model is not loaded yet.
            TooLateError: The deadline came first.
            BadRequestError: The runner's engine was not built for inputs of these sizes.
            InferenceError: The runner failed.
        """
        if not self.ready:
            raise NotReadyError(f"model {self.contract.name!r} is still being loaded; try again in a moment")
        asked = time.monotonic_ns()
        job = self._job(Request(inputs, tuple(outputs)), deadline, on_begun)
        self.stats.entered()
        try:
            self._queue.put(job)
            self._thread.submit(self._step)
            done = await self._until(job.future, deadline)
        except UnfitRequestError as error:
            error.__traceback__ = None  # its frames hold the inputs
            raise BadRequestError(str(error)) from error
        except (ServeError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise self._failure(inputs, error) from error
        finally:
            self.stats.left()
            self._queue.discard(job)
            del job  # an error whose traceback leads back to itself would keep the inputs
        self.stats.executed(done.began_ns - asked, done.ended_ns - done.began_ns)
        return done.arrays

    def _job(self, request: Request, deadline: float | None, on_begun: Callable[[], None] | None) -> Job:
        if not self.dynamic_batching:
            return Job(request, on_begun=on_begun)
        now = time.monotonic()
        # At most half of a request's time is spent on waiting for others.
        wait_until = math.inf if deadline is None else now + (deadline - now) / 2
        memory = memory_bound(self.contract, request.inputs)
        return Job(request, batch_key(request), memory, wait_until, on_begun=on_begun)

    async def _until(self, future: Future[Done], deadline: float | None) -> Done:
        """Wait for a job's outcome; cancel it if it has not begun at the deadline."""
        waiting = asyncio.wrap_future(future)
        try:
            if deadline is not None:
                await asyncio.wait({waiting}, timeout=max(deadline - time.monotonic(), 0.0))
                if future.cancel():
                    name = self.contract.name
                    raise TooLateError(f"the time of this request was over before model {name!r} got to it")
            return await waiting
        finally:
            del waiting, future

    def _failure(self, inputs: Mapping[str, Array], error: Exception) -> InferenceError:
        shapes = {name: array.shape for name, array in inputs.items()}
        logger.error("model %s failed on inputs of shapes %s", self.contract.name, shapes, exc_info=error)
        error.__traceback__ = None  # its frames hold the inputs
        name, kind = self.contract.name, type(error).__name__
        return InferenceError(f"model {name!r} failed on this input ({kind}); the server's log says why")

    def _step(self) -> None:
        """In the engine's thread: compute the next jobs. Submitted once per request, so that none is left."""
        jobs = self._queue.take()
        if not jobs:
            return
        for job in jobs:
            if job.on_begun is not None:
                job.on_begun()
        began = self._call_began_ns = time.monotonic_ns()
        try:
            outcomes = self._compute([job.request for job in jobs])
        except BaseException as error:
            for job in jobs:
                job.future.set_exception(RuntimeError(f"the engine's thread ended with {type(error).__name__}"))
            raise
        finally:
            self._call_began_ns = None
        ended = time.monotonic_ns()
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(Done(outcome, began, ended))

    def _compute(self, requests: Sequence[Request]) -> list[dict[str, Array] | Exception]:
        """Compute requests of one batch key; when they fail together, each is tried alone.

        Returns:
            For each request its outputs, or the exception it failed with.
        """
        try:
            return list(self._call(requests))
        except Exception as error:
            if len(requests) == 1:
                return [error]
            name, count = self.contract.name, len(requests)
            logger.warning("model %s: %d requests failed together (%s), each is tried alone", name, count, error)
        return [outcome for request in requests for outcome in self._compute([request])]

    def _call(self, requests: Sequence[Request]) -> list[dict[str, Array]]:
        """Call the runner once, with one request, or with several where dynamic batching is on."""
        if self.dynamic_batching:
            inputs: Mapping[str, Array] = merge(requests)
            outputs: Sequence[str] = computed_outputs(requests[0].outputs)
        else:
            ((inputs, outputs),) = requests
        began = time.monotonic_ns()
        arrays = self.runner.infer(inputs, outputs)
        with suppress(RuntimeError):  # the loop may be closed already
            self._loop.call_soon_threadsafe(self.stats.called, len(inputs["gt_bboxes"]), time.monotonic_ns() - began)
        return split(self.contract, requests, arrays) if self.dynamic_batching else [arrays]

    def close(self) -> None:
        """Wait for the current call, end the thread and release the runner."""
        self.ready = False
        self._queue.close()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.runner.close()

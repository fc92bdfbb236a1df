"""One model: its runner, the thread that runs it, and the queue before it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.errors import BadRequestError, InferenceError, NotReadyError, ServeError, TooLateError
from yolo_assigner.serve.inference.batching import Batching, BatchLimits, Done, JobQueue
from yolo_assigner.serve.inference.merging import Request
from yolo_assigner.serve.inference.runners.base import Runner, UnfitRequestError
from yolo_assigner.serve.inference.stats import ModelStats
from yolo_assigner.serve.system import lower_thread_priority
from yolo_assigner.serve.wire.dtypes import Array

logger = logging.getLogger("serve")


class Model:
    """One model and the thread that runs it.

    Args:
        contract: What it takes and gives.
        runner: What computes it.
        limits: How far requests are put together.

    Attributes:
        contract: As given.
        ready: It has been loaded.
        stats: What it has done.
        limits: How far requests are put together.
        batching: How requests become calls of the runner.
    """

    def __init__(self, contract: Contract, runner: Runner, limits: BatchLimits = BatchLimits()) -> None:  # noqa: B008
        self.contract = contract
        self.ready = False
        self.stats = ModelStats()
        self.limits = limits
        self.batching = Batching(contract, runner, limits, self._called)
        self._runner = runner
        self._queue = JobQueue(limits)
        self._computing_since: int | None = None
        # One thread of its own: calls queue up here and never in a pool that others need.
        self._worker = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=f"engine-{contract.name}", initializer=lower_thread_priority
        )

    @property
    def dynamic_batching(self) -> bool:
        """Requests are put together."""
        return self.batching.on

    @property
    def platform(self) -> str:
        """What runs it, by Triton's names; empty while that is not decided."""
        return self._runner.platform

    def seconds_of_call(self) -> float:
        """How long the thread has been computing by now; 0 when it does not."""
        since = self._computing_since
        return 0.0 if since is None else (time.monotonic_ns() - since) / 1e9

    async def load(self) -> None:
        """Bring the runner up."""
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._worker, self.batching.load)
        self.ready = True

    async def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        deadline: float | None = None,
        on_begun: Callable[[], None] | None = None,
    ) -> dict[str, Array]:
        """Compute outputs. A caller that is cancelled while it waits takes its work out of the queue.

        Args:
            inputs: As :func:`yolo_assigner.serve.detection.validate.check_inputs` returns them.
            outputs: Names that exist.
            deadline: By ``time.monotonic``; computing must begin before it. None: whenever it can.
            on_begun: Told when computing begins, in the engine's thread.

        Raises:
            NotReadyError: The model is not loaded yet.
            TooLateError: The deadline came first.
            BadRequestError: The runner's engine was not built for inputs of these sizes.
            InferenceError: The runner failed.
        """
        if not self.ready:
            raise NotReadyError(f"model {self.contract.name!r} is still being loaded; try again in a moment")
        asked = time.monotonic_ns()
        job = self.batching.job(Request(inputs, tuple(outputs)), deadline)
        job.on_begun = on_begun
        self.stats.entered()
        try:
            self._queue.put(job)
            self._worker.submit(self._step)
            done = await self._until(job.future, deadline)
        except UnfitRequestError as error:
            error.__traceback__ = None  # whose frames hold the inputs
            raise BadRequestError(str(error)) from error
        except (ServeError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise self._failure(inputs, error) from error
        finally:
            self.stats.left()
            self._queue.discard(job)
            del job  # an error that refers to itself would keep the inputs
        waited = done.began_ns - asked
        self.stats.executed(waited, done.ended_ns - done.began_ns)
        return done.arrays

    def _step(self) -> None:
        """In the engine's thread: compute what is next. Every request has a step, so none is left."""
        jobs = self._queue.take()
        if not jobs:
            return
        for job in jobs:
            if job.on_begun is not None:
                job.on_begun()
        began = self._computing_since = time.monotonic_ns()
        try:
            outcomes = self.batching.compute([job.request for job in jobs])
        except BaseException as error:
            for job in jobs:
                job.future.set_exception(RuntimeError(f"the engine's thread ended with {type(error).__name__}"))
            raise
        finally:
            self._computing_since = None
        ended = time.monotonic_ns()
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(Done(outcome, began, ended))

    def _called(self, images: int, nanoseconds: int) -> None:
        """In the engine's thread: the runner has been called. Counted where all else is."""
        with suppress(RuntimeError):  # the loop may be closed already
            self._loop.call_soon_threadsafe(self.stats.called, images, nanoseconds)

    async def _until(self, work: Future[Done], deadline: float | None) -> Done:
        """Wait for work; what has not begun at the deadline is taken back."""
        waiting = asyncio.wrap_future(work)
        try:
            if deadline is not None:
                await asyncio.wait({waiting}, timeout=max(deadline - time.monotonic(), 0.0))
                if work.cancel():
                    name = self.contract.name
                    raise TooLateError(f"the time of this request was over before model {name!r} got to it")
            return await waiting
        finally:
            del waiting, work

    def _failure(self, inputs: Mapping[str, Array], error: Exception) -> InferenceError:
        shapes = {name: array.shape for name, array in inputs.items()}
        logger.error("model %s failed on inputs of shapes %s", self.contract.name, shapes, exc_info=error)
        error.__traceback__ = None  # whose frames hold the inputs
        name, kind = self.contract.name, type(error).__name__
        return InferenceError(f"model {name!r} failed on this input ({kind}); the server's log says why")

    def close(self) -> None:
        """Let the running call end, stop the thread and give back what the runner holds."""
        self.ready = False
        self._queue.close()
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._runner.close()

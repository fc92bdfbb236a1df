"""A service whose models run in the worker, which is started again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import orjson

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.errors import BusyError, InferenceError, NotReadyError, StuckError, exhausted
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.loading import find_model, names_in
from yolo_assigner.serve.inference.local import Setup
from yolo_assigner.serve.inference.registry import MutableModelRegistry, check_loaded, not_loaded, reason_of
from yolo_assigner.serve.inference.service import Call, Operation
from yolo_assigner.serve.inference.stats import ModelStats
from yolo_assigner.serve.process.child import COMMAND, ProcessEndedError, WorkerProcess, exit_text, too_late
from yolo_assigner.serve.process.messages import ModelState, Recorded, RegionsChanged, Report
from yolo_assigner.serve.process.segments import INLINE_BYTES, SharedPool
from yolo_assigner.serve.shared_memory.regions import extensions
from yolo_assigner.serve.wire.response import EncodedResponse

RESTART_SECONDS = 30.0  # that a caller waits for the next worker
LEAST_SILENCE = 2.0  # seconds; a worker that parses large JSON sends nothing meanwhile
STABLE_SECONDS = 10.0  # a worker that lived so long is started again at once, as is the first that did not
LEAST_PAUSE, MOST_PAUSE = 1.0, 30.0  # seconds before the next ones
# Without a worker. The liveness probe fails then, so that the server is restarted, which logs more of what is wrong.
HOPEFUL_SECONDS = 120.0
CRASHED = (
    "the engines' process ended ({}) while it was loaded; export it again, or install another version of its runtime"
)
logger = logging.getLogger("serve")


@dataclass
class RemoteModel:
    """What the server's process knows of a model that the worker runs.

    Attributes:
        contract: Its inputs and outputs.
        limits: Limits of batches.
        ready: Whether requests can be computed.
        platform: Triton's name of the runtime.
        dynamic_batching: Whether requests are merged into batches.
        stats: What it has done, including in earlier workers.
    """

    contract: Contract
    limits: BatchLimits
    ready: bool = False
    platform: str = ""
    dynamic_batching: bool = False
    stats: ModelStats = field(default_factory=ModelStats)


class RemoteService:
    """Answers requests with the models of a worker.

    Args:
        contracts: Contracts of the models that the worker will load, by name.
        setup: What the worker is to load; its failures are of further models.
        command: Command that starts the worker.

    Attributes:
        registry: The models.
        memory: Memory for the bodies of requests.
        extensions: Extensions of the protocol, beyond binary tensors.
        restarts: How often the worker was started again.
        queued: Requests that wait for an engine, or that one computes.
    """

    def __init__(self, contracts: Sequence[Contract], setup: Setup, command: Sequence[str] = COMMAND) -> None:
        models = [RemoteModel(contract, setup.limits) for contract in contracts]
        self.registry = MutableModelRegistry(models, dict(setup.failures), partial(names_in, setup.artifacts))
        self.memory = SharedPool(setup.keep_bytes, self._forget_segment)
        self.extensions: Sequence[str] = extensions(setup.shared_memory is not None)
        self.restarts = 0
        self.queued = 0
        self._setup = setup
        self._reloading = asyncio.Lock()  # one at a time: each needs the memory of two models
        self._down_since: float | None = None  # by time.monotonic, once models have been loaded
        self._command = command
        self._process: WorkerProcess | None = None
        self._up = asyncio.Event()
        self._loaded_once = False
        self._supervisor: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process identifier of the current worker; None before the first one."""
        return self._process.pid if self._process is not None else None

    async def load(self) -> None:
        """Start the worker and wait for its models.

        Raises:
            ValueError: No model can be loaded.
        """
        await self._start()
        self._supervisor = asyncio.create_task(self._supervise())

    async def reload(self, name: str) -> None:
        """Load the files of a model anew and replace the one in use.

        They are loaded in a process of their own first: files that crash the process that loads them crash that one.

        Raises:
            NotFoundError: The artifacts have no such model.
            BadRequestError: It cannot be loaded; the one in use stays.
            ServeError: The worker ended meanwhile.
        """
        async with self._reloading:
            if not self._loaded_once:
                await self._restarted(None)  # the last model may be ready a moment before all are known to be
            if not self._loaded_once:
                raise NotReadyError("models are being loaded for the first time; try again in a moment")
            try:
                await asyncio.to_thread(find_model, self._setup.artifacts, name)
                await self._rehearse(name)
            except (ValueError, OSError) as error:
                raise exhausted(error) or not_loaded(self.registry, name, reason_of(error)) from error
            try:
                await self._run(Call(Operation.LOAD, name), memoryview(b""), None)
            except ProcessEndedError as error:
                raise InferenceError(f"the engines' process ended while it loaded model {name!r}; try again") from error

    def check_alive(self) -> None:
        """Check that waiting can help.

        Raises:
            StuckError: The worker has been down for long.
        """
        if self._down_since is not None and (seconds := time.monotonic() - self._down_since) > HOPEFUL_SECONDS:
            raise StuckError(f"the engines' process could not be started for {seconds:.0f} s; restart the server")

    def check_ready(self) -> None:
        """Check that requests can be answered now.

        Raises:
            NotReadyError: Models are being loaded, or the worker is not up.
        """
        check_loaded(self.registry)
        if not self._up.is_set():
            raise NotReadyError("models are being loaded; try again in a moment")

    def check(self, name: str | None = None) -> None:
        """Check that a model, or all of them, can be used, or can be once the worker has been started again.

        Raises:
            NotReadyError: It is being loaded for the first time.
            ModelFailedError: It cannot be loaded.
        """
        if not self._loaded_once:
            check_loaded(self.registry, name)

    async def run(self, call: Call, body: memoryview) -> EncodedResponse:
        """Answer a request. One that no engine had started on when the worker ended is sent to the next worker.

        Raises:
            ServeError: The request is refused or failed; the text says why.
        """
        deadline = deadline_of(call, body)
        self.queued += 1
        try:
            try:
                return await self._run_unless_started(call, body, deadline)
            except ProcessEndedError:
                logger.warning("%s is sent again, to the next process", call.operation)
            return await self._run_unless_started(call, body, deadline)
        except ProcessEndedError as error:
            raise NotReadyError(
                "the engines' process ended twice before it got to this request; try again in a moment"
            ) from error
        finally:
            self.queued -= 1

    def close(self) -> None:
        """Stop the worker, and answer no more requests."""
        self._closed = True
        self._down()
        if self._supervisor is not None:
            self._supervisor.cancel()
        if self._process is not None:
            self._process.close()
        self.memory.close()

    async def _run_unless_started(self, call: Call, body: memoryview, deadline: float | None) -> EncodedResponse:
        """Answer a request.

        Raises:
            ProcessEndedError: The worker ended before an engine started on the request.
            InferenceError: The worker ended later.
            ServeError: The request is refused or failed.
        """
        try:
            return await self._run(call, body, deadline)
        except ProcessEndedError as error:
            if not error.started:
                raise
            raise InferenceError(
                "the engines' process ended while it computed this request; the server's log says why"
            ) from error

    async def _run(self, call: Call, body: memoryview, deadline: float | None) -> EncodedResponse:
        if self._closed:
            raise BusyError("this server is about to stop; send the request to another one")
        if self._loaded_once and not self._up.is_set():
            await self._restarted(deadline)
        if call.operation != Operation.LOAD:
            check_loaded(self.registry, call.target if call.operation == Operation.INFER else None)
        assert self._process is not None  # noqa: S101 - it has loaded models
        return await self._process.run(call, body, deadline)

    async def _restarted(self, deadline: float | None) -> None:
        """Wait for the next worker, as long as a caller is kept waiting."""
        seconds = RESTART_SECONDS if deadline is None else min(RESTART_SECONDS, deadline - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._up.wait()
        if not self._up.is_set() and seconds < RESTART_SECONDS:
            raise too_late()

    async def _start(self) -> None:
        """Start a worker, and start it again without each model that ends it while it is loaded.

        Models that failed are left out by all later workers, unless none is left: then all are tried again next time.

        Raises:
            ValueError: No model can be loaded.
        """
        failures = dict(self.registry.failures)
        try:
            while not await self._start_once():
                self.restarts += 1
        except BaseException:
            self.registry.failures = failures
            raise

    async def _start_once(self) -> bool:
        """Start a worker and wait for its models.

        Returns:
            False when it ended while it loaded a model, and other models are left.

        Raises:
            ValueError: No model can be loaded.
        """
        failures = tuple(self.registry.failures.items())
        setup = self._setup._replace(models=tuple(self.registry.models), failures=failures)
        process = self._process = WorkerProcess(setup, self.memory, self._take, self._down, self._command)
        try:
            await asyncio.shield(process.ready)
        except ValueError:
            process.kill()
            if process.loading is None:
                raise
            code = await asyncio.shield(process.ended)
            if self._loaded_once and code == -signal.SIGKILL:
                raise  # the system is short of memory, which is not this model's fault: it has been loaded before
            self.registry.fail(process.loading, CRASHED.format(exit_text(code)))
            if not self.registry.usable:
                raise
            return False
        except BaseException:
            process.kill()
            raise
        if not process.ended.done():
            self._up.set()
            self._loaded_once, self._down_since = True, None
        return True

    async def _rehearse(self, name: str) -> None:
        """Load one model in a worker of its own, which is then ended.

        Raises:
            ValueError: The model cannot be loaded.
        """
        setup = self._setup._replace(models=(name,), failures=(), shared_memory=None, regions=None)
        process = WorkerProcess(setup, self.memory, lambda _: None, lambda: None, self._command)
        try:
            await asyncio.shield(process.ready)
        finally:
            process.kill()
            await asyncio.shield(process.ended)

    async def _supervise(self) -> None:
        """Start the worker again whenever it ends."""
        pause = 0.0
        while True:
            assert self._process is not None  # noqa: S101 - it has been started
            began = time.monotonic()
            code = await self._until_ended(self._process)
            logger.error("the engines' process ended (%s); it is started again", exit_text(code))
            if time.monotonic() - began >= STABLE_SECONDS:
                pause = 0.0
            while not self._up.is_set():
                await asyncio.sleep(pause)
                pause = min(max(2 * pause, LEAST_PAUSE), MOST_PAUSE)
                self.restarts += 1
                try:
                    await self._start()
                except Exception as error:  # also of a system that is short of memory or descriptors
                    logger.error("the engines' process cannot be started: %s", error)

    async def _until_ended(self, process: WorkerProcess) -> int:
        """Wait for the end of a worker, and kill one that is silent for longer than an engine may take.

        Returns:
            Its exit code.
        """
        most = self._setup.engine_timeout
        while not process.ended.done():
            await asyncio.wait({process.ended}, timeout=1.0 if most else None)
            silent = time.monotonic() - process.heard
            if most and silent > most + LEAST_SILENCE and not process.ended.done():
                logger.error("the engines' process has been silent for %.1f s; it is ended", silent)
                process.kill()
        return process.ended.result()

    def _down(self) -> None:
        self._up.clear()
        if self._loaded_once and self._down_since is None:
            self._down_since = time.monotonic()
        for model in self.registry.models.values():
            model.ready = False

    def _take(self, report: Report) -> None:
        match report:
            case ModelState():
                self._set_state(report)
            case RegionsChanged():
                self._setup = self._setup._replace(regions=report.state)  # for the next worker
            case Recorded():
                record(self.registry.models[report.model].stats, report)

    def _set_state(self, state: ModelState) -> None:
        if state.failure is not None:
            # The worker has logged it.
            self.registry.failures = {**self.registry.failures, state.name: state.failure}
            return
        model = self.registry.models.get(state.name)
        if state.contract is not None and (model is None or model.contract != state.contract or self._is_mended(state)):
            model = RemoteModel(state.contract, self._setup.limits)
            self.registry.put(model)
        assert model is not None  # noqa: S101 - one without a contract has failed
        model.ready, model.platform, model.dynamic_batching = state.ready, state.platform, state.dynamic_batching

    def _is_mended(self, state: ModelState) -> bool:
        return state.ready and state.name in self.registry.failures

    def _forget_segment(self, number: int) -> None:
        if self._process is not None:
            self._process.forget_segment(number)


def record(stats: ModelStats, recorded: Recorded) -> None:
    """Add what the worker recorded of a model to its statistics."""
    for queue_ns, engine_ns in recorded.executed:
        stats.executed(queue_ns, engine_ns)
    for images, engine_ns in recorded.called:
        stats.called(images, engine_ns)
    for input_ns, output_ns in recorded.carried:
        stats.carried(input_ns, output_ns)
    for total_ns in recorded.failed:
        stats.failed(total_ns)


def deadline_of(call: Call, body: memoryview) -> float | None:
    """Return until when a call waits for an engine, by ``time.monotonic``; None: for ever.

    A timeout in the request's own JSON is read where that costs next to nothing. Larger JSON is for the worker, which
    then judges the deadline alone.
    """
    size = len(body) if call.json_length is None else call.json_length
    if call.operation != Operation.INFER:
        return call.deadline()
    if not 0 < size <= min(len(body), INLINE_BYTES):
        return None
    text = bytes(body[:size])
    if b'"timeout"' not in text:
        return call.deadline()
    try:
        value = orjson.loads(text)["parameters"]["timeout"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None  # the worker says what is wrong with it
    return call.deadline(value if type(value) is int and value > 0 else None)

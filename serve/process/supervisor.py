"""A service in a process of its own, which is started again when it ends."""

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
from yolo_assigner.serve.errors import BusyError, InferenceError, NotReadyError, StuckError, TooLateError, exhausted
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.loading import find_model, names_in
from yolo_assigner.serve.inference.local import Setup
from yolo_assigner.serve.inference.registry import MutableModelRegistry, check_loaded, not_loaded, reason_of
from yolo_assigner.serve.inference.service import Call, Operation
from yolo_assigner.serve.inference.stats import ModelStats
from yolo_assigner.serve.process.child import COMMAND, ProcessEndedError, Told, WorkerProcess, ending
from yolo_assigner.serve.process.messages import Counted, Extensions, ModelState, RegionsChanged
from yolo_assigner.serve.process.segments import INLINE_BYTES, SharedPool
from yolo_assigner.serve.wire.response import EncodedResponse

RESTART_SECONDS = 30.0  # that a caller waits for a process that is started again
LEAST_SILENCE = 2.0  # seconds; whoever reads large JSON says nothing meanwhile
STABLE_SECONDS = 10.0  # a process that lived so long is started again at once, as is the first that did not
LEAST_PAUSE, MOST_PAUSE = 1.0, 30.0  # before the next ones
CRASHED = (
    "the engines' process ended ({}) while it was loaded; export it again, or install another version of its runtime"
)
# Without engines; whoever watches liveness then restarts the server, and learns more from how it starts.
HOPEFUL_SECONDS = 120.0
logger = logging.getLogger("serve")


class RemoteService:
    """Computes in a process of its own.

    Args:
        contracts: Of the models that it will have, in the order of their names.
        setup: What it is to be; its failures are of further models.
        command: How it is started.

    Attributes:
        registry: The models.
        memory: What bodies are to be read into.
        extensions: Of the protocol, beyond binary tensors.
        restarts: How often the process was started again.
    """

    def __init__(self, contracts: Sequence[Contract], setup: Setup, command: Sequence[str] = COMMAND) -> None:
        models = [RemoteModel(contract, setup.limits) for contract in contracts]
        self.registry = MutableModelRegistry(models, dict(setup.failures), partial(names_in, setup.artifacts))
        self.memory = SharedPool(setup.keep_bytes, self._segment_gone)
        self.extensions: Sequence[str] = ()
        self.restarts = 0
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
        """Of the process of now."""
        return self._process.pid if self._process is not None else None

    async def load(self) -> None:
        """Start the process and wait for its models.

        Raises:
            ValueError: None can be loaded.
        """
        await self._start()
        self._supervisor = asyncio.create_task(self._supervise())

    async def reload(self, name: str) -> None:
        """Exchange a model for what its files are now.

        They are loaded in a process of their own first: files that end the process that loads them end that one.

        Raises:
            NotFoundError: There is no such model among the artifacts.
            BadRequestError: It cannot be loaded; the one in use stays.
            ServeError: The engines' process ended meanwhile.
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
        """See whether waiting can help.

        Raises:
            StuckError: The process has been down for long.
        """
        if self._down_since is not None and (seconds := time.monotonic() - self._down_since) > HOPEFUL_SECONDS:
            raise StuckError(f"the engines' process could not be started for {seconds:.0f} s; restart the server")

    def check_ready(self) -> None:
        """See whether requests can be answered now.

        Raises:
            NotReadyError: Models are being loaded, or the process is not up.
        """
        check_loaded(self.registry)
        if not self._up.is_set():
            raise NotReadyError("models are being loaded; try again in a moment")

    def check(self, name: str | None = None) -> None:
        """See that a model, or all of them, can be used, or will be soon: while the process is started again.

        Raises:
            NotReadyError: It is being loaded for the first time.
            ModelFailedError: It cannot be loaded.
        """
        if not self._loaded_once:
            check_loaded(self.registry, name)

    async def run(self, call: Call, body: memoryview) -> EncodedResponse:
        """Answer a request. One that no engine had begun with when the process ended is sent to the next process.

        Raises:
            ServeError: The request is refused or failed; the text says why.
        """
        deadline = deadline_of(call, body)
        try:
            return await self._run(call, body, deadline)
        except ProcessEndedError as error:
            if error.begun:
                raise ended_meanwhile() from error
        logger.warning("%s is sent again, to the next process", call.operation)
        try:
            return await self._run(call, body, deadline)
        except ProcessEndedError as error:
            if error.begun:
                raise ended_meanwhile() from error
            raise NotReadyError(
                "the engines' process ended twice before it got to this request; try again in a moment"
            ) from error

    def close(self) -> None:
        """Stop."""
        self._closed = True
        self._down()
        if self._supervisor is not None:
            self._supervisor.cancel()
        if self._process is not None:
            self._process.close()
        self.memory.close()

    async def _run(self, call: Call, body: memoryview, deadline: float | None) -> EncodedResponse:
        if self._closed:
            raise BusyError("this server is about to stop; send the request to another one")
        if self._loaded_once and not self._up.is_set():
            await self._restarted(deadline)
        if call.operation != Operation.LOAD:
            check_loaded(self.registry, call.target if call.operation == Operation.INFER else None)
        assert self._process is not None  # noqa: S101 - it has loaded models
        return await ask(self._process, call, body, deadline)

    async def _restarted(self, deadline: float | None) -> None:
        """Wait for the next process, so long as that makes sense."""
        seconds = RESTART_SECONDS if deadline is None else min(RESTART_SECONDS, deadline - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._up.wait()
        if not self._up.is_set() and seconds < RESTART_SECONDS:
            raise too_late()

    async def _start(self) -> None:
        """Start a process, again without each model whose loading ends it.

        Models that fail stay so for all later processes, unless none is left: then all are tried again the next time.

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
        """Start a process; it is the one of now when its models are loaded.

        Returns:
            False when it ended while it loaded a model, and others are left.
        """
        failures = tuple(self.registry.failures.items())
        setup = self._setup._replace(models=tuple(self.registry.models), failures=failures)
        told = Told(self._set_extensions, self._model_changed, self._counted, self._regions_changed, self._down)
        process = self._process = WorkerProcess(setup, self.memory, told, self._command)
        try:
            await asyncio.shield(process.ready)
        except ValueError:
            process.kill()
            if process.loading is None:
                raise
            code = await asyncio.shield(process.ended)
            if self._loaded_once and code == -signal.SIGKILL:
                raise  # memory is short, for what others have of it: this model has been loaded before
            self.registry.fail(process.loading, CRASHED.format(ending(code)))
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
        """Load one model in a process that then ends.

        Raises:
            ValueError: It cannot be loaded.
        """
        setup = self._setup._replace(models=(name,), failures=(), shared_memory=None, regions=None)
        told = Told(_ignore, _ignore, _ignore, _ignore, lambda: None)
        process = WorkerProcess(setup, self.memory, told, self._command)
        try:
            await asyncio.shield(process.ready)
        finally:
            process.kill()
            await asyncio.shield(process.ended)

    async def _supervise(self) -> None:
        """Start the process again whenever it ends."""
        pause = 0.0
        while True:
            assert self._process is not None  # noqa: S101 - it has been started
            began = time.monotonic()
            code = await self._until_ended(self._process)
            logger.error("the engines' process ended (%s); it is started again", ending(code))
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
        """Wait for the end of a process; one of which nothing is heard for longer than an engine may take is ended."""
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
            model.stats.queued = 0

    def _model_changed(self, state: ModelState) -> None:
        if state.failure is not None:
            # The process has logged it.
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

    def _set_extensions(self, extensions: Extensions) -> None:
        self.extensions = extensions.names

    def _counted(self, counted: Counted) -> None:
        getattr(self.registry.models[counted.model].stats, counted.method)(*counted.values)

    def _segment_gone(self, number: int) -> None:
        if self._process is not None:
            self._process.forget_segment(number)

    def _regions_changed(self, changed: RegionsChanged) -> None:
        """The next process is to know the regions of this one."""
        self._setup = self._setup._replace(regions=changed.state)


def _ignore(_: object) -> None:
    """What a rehearsal says is of no interest but for its end."""


@dataclass
class RemoteModel:
    """What is known here of a model that is computed elsewhere.

    Attributes:
        contract: What it takes and gives.
        limits: How far requests are put together.
        ready: It can be used.
        platform: What runs it, by Triton's names.
        dynamic_batching: Requests are put together.
        stats: What it has done, also in earlier processes.
    """

    contract: Contract
    limits: BatchLimits
    ready: bool = False
    platform: str = ""
    dynamic_batching: bool = False
    stats: ModelStats = field(default_factory=ModelStats)


async def ask(process: WorkerProcess, call: Call, body: memoryview, deadline: float | None) -> EncodedResponse:
    """Send a call to a process and wait for what comes back, or until the deadline while no engine has begun."""
    number = process.begin(call, body)
    answer = process.answer(number)
    try:
        if deadline is not None:
            await asyncio.wait({answer}, timeout=max(deadline - time.monotonic(), 0.0))
            if not (answer.done() or process.has_begun(number)):
                raise too_late()
        return await asyncio.shield(answer)  # whoever stops waiting must not make it look answered
    finally:
        process.give_up(number)
        del answer  # an error that refers to itself would keep the body's memory


def ended_meanwhile() -> InferenceError:
    """For a request that was being computed."""
    return InferenceError("the engines' process ended while it computed this request; the server's log says why")


def too_late() -> TooLateError:
    """For a request that no engine had begun with."""
    return TooLateError("the time of this request was over before its model got to it")


def deadline_of(call: Call, body: memoryview) -> float | None:
    """Until when to wait here.

    What a request itself allows is read where that costs next to nothing. Larger JSON is for the worker, which then
    judges its deadline alone.
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

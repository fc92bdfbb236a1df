"""A service in a process of its own, which is started again when it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import orjson

from export.contract import Contract
from serve.compute.service import Call, Verb
from serve.compute.setup import Setup
from serve.engine.catalogue import Catalogue, check_loaded
from serve.engine.job_queue import BatchLimits
from serve.engine.stats import ModelStats
from serve.errors import InferenceError, ServeError, TooLateError
from serve.tensors.encode import EncodedResponse
from serve.worker.messages import Counted, ModelLoaded
from serve.worker.process import COMMAND, ProcessEndedError, Told, WorkerProcess, ending
from serve.worker.segments import INLINE_BYTES, SharedPool

RESTART_SECONDS = 30.0  # that a caller waits for a process that is started again
UNREGISTER = {Verb.REGION_REGISTER: Verb.REGION_UNREGISTER, Verb.CUDA_REGISTER: Verb.CUDA_UNREGISTER}
STABLE_SECONDS = 10.0  # a process that lived so long is started again at once, as is the first that did not
LEAST_PAUSE, MOST_PAUSE = 1.0, 30.0  # before the next ones
logger = logging.getLogger("serve")


@dataclass
class RemoteModel:
    """What is known here of a model that is computed elsewhere.

    Attributes:
        contract: What it takes and gives.
        limits: How far requests are put together.
        ready: It can be used.
        platform: What runs it, by Triton's names.
        merges: Requests are put together.
        stats: What it has done, also in earlier processes.
    """

    contract: Contract
    limits: BatchLimits
    ready: bool = False
    platform: str = ""
    merges: bool = False
    stats: ModelStats = field(default_factory=ModelStats)


class RemoteService:
    """Computes in a process of its own.

    Args:
        contracts: Of the models that it will have, in the order of their names.
        setup: What it is to be.
        command: How it is started.

    Attributes:
        catalogue: The models.
        memory: What bodies are to be read into.
        extensions: Of the protocol, beyond binary tensors.
        restarts: How often the process was started again.
    """

    def __init__(self, contracts: Sequence[Contract], setup: Setup, command: Sequence[str] = COMMAND) -> None:
        self.catalogue = Catalogue([RemoteModel(contract, setup.limits) for contract in contracts])
        self.memory = SharedPool(setup.keep_bytes, self._segment_gone)
        self.extensions: Sequence[str] = ()
        self.restarts = 0
        self._setup = setup
        self._command = command
        self._process: WorkerProcess | None = None
        self._up = asyncio.Event()
        self._loaded_once = False
        self._supervisor: asyncio.Task[None] | None = None
        self._registrations: dict[str, tuple[Call, bytes]] = {}

    @property
    def pid(self) -> int | None:
        """Of the process of now."""
        return self._process.pid if self._process is not None else None

    async def load(self) -> None:
        """Start the process and wait for its models.

        Raises:
            ValueError: One cannot be loaded.
        """
        await self._start()
        self._supervisor = asyncio.create_task(self._supervise())

    async def usable(self, name: str | None = None) -> None:
        """Wait while a process that ended is started again.

        Raises:
            NotReadyError: It is not there in time, or has never been.
        """
        if self._loaded_once and not self._up.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(RESTART_SECONDS):
                    await self._up.wait()
        check_loaded(self.catalogue, name)

    async def run(self, call: Call, body: memoryview, on_begun: Callable[[], None] | None = None) -> EncodedResponse:
        """Answer a request. One that no engine had begun with when the process ended is sent to the next process.

        Raises:
            ServeError: The request is refused or failed; the text says why.
        """
        deadline = call.deadline(_timeout(call, body))
        try:
            answer = await self._run(call, body, deadline)
        except ProcessEndedError as error:
            if error.begun:
                raise _ended_meanwhile() from error
            logger.warning("%s is sent again, to the next process", call.verb)
            try:
                answer = await self._run(call, body, deadline)
            except ProcessEndedError as again:
                raise _ended_meanwhile() from again
        if on_begun is not None:
            on_begun()
        self._remember(call, body)
        return answer

    def close(self) -> None:
        """Stop."""
        if self._supervisor is not None:
            self._supervisor.cancel()
        if self._process is not None:
            self._process.close()
        self.memory.close()

    async def _run(self, call: Call, body: memoryview, deadline: float | None) -> EncodedResponse:
        await self.usable(call.target if call.verb == Verb.INFER else None)
        assert self._process is not None  # noqa: S101 - it has loaded models
        return await _ask(self._process, call, body, deadline)

    async def _start(self) -> None:
        """Start a process; it is the one of now when its models are loaded."""
        told = Told(self._model_loaded, self._counted, self._down)
        process = self._process = WorkerProcess(self._setup, self.memory, told, self._command)
        try:
            self.extensions = await asyncio.shield(process.ready)
        except BaseException:
            process.kill()
            raise
        for call, body in list(self._registrations.values()):
            with suppress(ServeError, ProcessEndedError):  # its memory is gone; whoever uses it is told
                await _ask(process, call, memoryview(body), None)
        if not process.ended.done():
            self._up.set()
            self._loaded_once = True

    async def _supervise(self) -> None:
        """Start the process again whenever it ends."""
        began, pause = time.monotonic(), 0.0
        while True:
            assert self._process is not None  # noqa: S101 - it has been started
            code = await asyncio.shield(self._process.ended)  # whoever stops waiting must not make it look ended
            self.restarts += 1
            logger.error("the engines' process ended (%s); it is started again", ending(code))
            pause = 0.0 if time.monotonic() - began >= STABLE_SECONDS else pause
            await asyncio.sleep(pause)
            began, pause = time.monotonic(), min(max(2 * pause, LEAST_PAUSE), MOST_PAUSE)
            try:
                await self._start()
            except ValueError as error:
                logger.error("the engines' process cannot load its models: %s", error)

    def _down(self) -> None:
        self._up.clear()
        for model in self.catalogue.models.values():
            model.ready = False
            model.stats.queued = 0

    def _model_loaded(self, loaded: ModelLoaded) -> None:
        model = self.catalogue.find(loaded.name)
        model.ready, model.platform, model.merges = True, loaded.platform, loaded.merges

    def _counted(self, counted: Counted) -> None:
        getattr(self.catalogue.find(counted.model).stats, counted.method)(*counted.values)

    def _segment_gone(self, number: int) -> None:
        if self._process is not None:
            self._process.forget_segment(number)

    def _remember(self, call: Call, body: memoryview) -> None:
        """Registered regions are registered again with the next process."""
        if call.verb in UNREGISTER and call.target is not None:
            self._registrations[call.target] = call, bytes(body)
        for name, (registration, _) in list(self._registrations.items()):
            if call.verb == UNREGISTER[registration.verb] and call.target in (None, name):
                del self._registrations[name]


async def _ask(process: WorkerProcess, call: Call, body: memoryview, deadline: float | None) -> EncodedResponse:
    """Send a call to a process and wait for what comes back, or until the deadline while no engine has begun."""
    number = process.begin(call, body)
    answer = process.answer(number)
    try:
        if deadline is not None:
            await asyncio.wait({answer}, timeout=max(deadline - time.monotonic(), 0.0))
            if not (answer.done() or process.has_begun(number)):
                raise TooLateError("the time of this request was over before its model got to it")
        return await answer
    finally:
        process.give_up(number)


def _ended_meanwhile() -> InferenceError:
    return InferenceError("the engines' process ended while it computed this request; the server's log says why")


def _timeout(call: Call, body: memoryview) -> int | None:
    """What an infer request itself allows, where that costs next to nothing to know; large JSON is for the worker."""
    size = len(body) if call.json_length is None else call.json_length
    if call.verb != Verb.INFER or not 0 < size <= min(len(body), INLINE_BYTES):
        return None
    text = bytes(body[:size])
    if b'"timeout"' not in text:
        return None
    try:
        value = orjson.loads(text)["parameters"]["timeout"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None  # the worker says what is wrong with it
    return value if type(value) is int and value > 0 else None

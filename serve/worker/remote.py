"""A service in a process of its own, which is started again when it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from export.contract import Contract
from serve.compute.service import Call, Verb
from serve.compute.setup import Setup
from serve.engine.catalogue import Catalogue, check_loaded
from serve.errors import BusyError, NotReadyError
from serve.tensors.encode import EncodedResponse
from serve.worker.ask import ask, deadline_of, ended_meanwhile, too_late
from serve.worker.messages import Counted, ModelState, RegionsChanged
from serve.worker.process import ProcessEndedError, Told, WorkerProcess
from serve.worker.remote_model import RemoteModel
from serve.worker.segments import SharedPool
from serve.worker.start import COMMAND, ending

RESTART_SECONDS = 30.0  # that a caller waits for a process that is started again
LEAST_SILENCE = 2.0  # seconds; whoever reads large JSON says nothing meanwhile
STABLE_SECONDS = 10.0  # a process that lived so long is started again at once, as is the first that did not
LEAST_PAUSE, MOST_PAUSE = 1.0, 30.0  # before the next ones
CRASHED = (
    "the engines' process ended ({}) while it was loaded; export it again, or install another version of its runtime"
)
logger = logging.getLogger("serve")


class RemoteService:
    """Computes in a process of its own.

    Args:
        contracts: Of the models that it will have, in the order of their names.
        setup: What it is to be; its failures are of further models.
        command: How it is started.

    Attributes:
        catalogue: The models.
        memory: What bodies are to be read into.
        extensions: Of the protocol, beyond binary tensors.
        restarts: How often the process was started again.
    """

    def __init__(self, contracts: Sequence[Contract], setup: Setup, command: Sequence[str] = COMMAND) -> None:
        models = [RemoteModel(contract, setup.limits) for contract in contracts]
        self.catalogue = Catalogue(models, dict(setup.failures))
        self.memory = SharedPool(setup.keep_bytes, self._segment_gone)
        self.extensions: Sequence[str] = ()
        self.restarts = 0
        self._setup = setup._replace(models=tuple((contract.name, contract.sha256) for contract in contracts))
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

    def check(self, name: str | None = None) -> None:
        """See that a model, or all of them, can be used, or will be soon: while the process is started again.

        Raises:
            NotReadyError: It is being loaded for the first time.
            ModelFailedError: It cannot be loaded.
        """
        if not self._loaded_once:
            check_loaded(self.catalogue, name)

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
        logger.warning("%s is sent again, to the next process", call.verb)
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
        check_loaded(self.catalogue, call.target if call.verb == Verb.INFER else None)
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
        failures = dict(self.catalogue.failures)
        try:
            while not await self._start_once():
                self.restarts += 1
        except BaseException:
            self.catalogue.failures = failures
            raise

    async def _start_once(self) -> bool:
        """Start a process; it is the one of now when its models are loaded.

        Returns:
            False when it ended while it loaded a model, and others are left.
        """
        setup = self._setup._replace(failures=tuple(self.catalogue.failures.items()))
        told = Told(self._model_changed, self._counted, self._regions_changed, self._down)
        process = self._process = WorkerProcess(setup, self.memory, told, self._command)
        try:
            self.extensions = await asyncio.shield(process.ready)
        except ValueError:
            process.kill()
            if process.loading is None:
                raise
            code = await asyncio.shield(process.ended)
            if self._loaded_once and code == -signal.SIGKILL:
                raise  # memory is short, for what others have of it: this model has been loaded before
            self.catalogue.fail(process.loading, CRASHED.format(ending(code)))
            if not self.catalogue.usable:
                raise
            return False
        except BaseException:
            process.kill()
            raise
        if not process.ended.done():
            self._up.set()
            self._loaded_once = True
        return True

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
        for model in self.catalogue.models.values():
            model.ready = False
            model.stats.queued = 0

    def _model_changed(self, state: ModelState) -> None:
        if state.failure is not None:
            self.catalogue.failures[state.name] = state.failure  # the process has logged it
            return
        model = self.catalogue.models[state.name]
        model.ready, model.platform, model.merges = state.ready, state.platform, state.merges

    def _counted(self, counted: Counted) -> None:
        getattr(self.catalogue.models[counted.model].stats, counted.method)(*counted.values)

    def _segment_gone(self, number: int) -> None:
        if self._process is not None:
            self._process.forget_segment(number)

    def _regions_changed(self, changed: RegionsChanged) -> None:
        """The next process is to know the regions of this one."""
        self._setup = self._setup._replace(regions=changed.state)

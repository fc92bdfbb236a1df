"""A service in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from yolo_assigner.serve.errors import ServeError, exhausted
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.infer import infer
from yolo_assigner.serve.inference.loading import LoadedModels, open_artifacts
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.registry import check_loaded, not_loaded, reason_of
from yolo_assigner.serve.inference.runners.choice import RunnerOptions
from yolo_assigner.serve.inference.service import Call, Operation
from yolo_assigner.serve.settings import MIB
from yolo_assigner.serve.shared_memory.regions import Regions, run_region_call
from yolo_assigner.serve.v1.operations import assign, loss, reduce
from yolo_assigner.serve.wire.buffers import GRAIN, BufferPool
from yolo_assigner.serve.wire.response import EncodedResponse

logger = logging.getLogger("serve")


class LocalService:
    """Computes where it is called.

    Args:
        registry: The models.
        regions: Shared memory; None: switched off.
        max_work_bytes: Most memory that a request may need while it is computed.
        keep_bytes: Most bytes of idle memory for bodies that are kept.

    Attributes:
        registry: The models.
        memory: What bodies are to be read into.
        extensions: Of the protocol, beyond binary tensors.
        restarts: 0.
        regions: As given.
        pid: None: the engines have no process of their own.
    """

    pid = None

    def __init__(
        self,
        registry: LoadedModels,
        regions: Regions | None = None,
        max_work_bytes: int = 4096 * MIB,
        keep_bytes: int = 256 * MIB,
    ) -> None:
        self.registry = registry
        self.memory = BufferPool(keep_bytes)
        self.restarts = 0
        self.extensions: Sequence[str] = ["system_shared_memory"] if regions is not None else []
        self.regions = regions
        self._max_work_bytes = max_work_bytes
        self._reloading = asyncio.Lock()  # one at a time: each needs the memory of two models
        self._registrar = ThreadPoolExecutor(1, thread_name_prefix="regions")

    async def load(self, on_change: Callable[[Model], Awaitable[None]] | None = None) -> None:
        """Bring all models up. Those that cannot be loaded are among the catalogue's failures.

        Args:
            on_change: Waited for before each model is loaded and after it.

        Raises:
            Exception: No model can be loaded.
        """
        async with self._reloading:
            await self.registry.load(on_change)

    def check(self, name: str | None = None) -> None:
        """See that a model, or all of them, can be used.

        Raises:
            NotReadyError: It is still being loaded.
            ModelFailedError: It cannot be loaded.
        """
        check_loaded(self.registry, name)

    async def run(self, call: Call, body: memoryview, on_begun: Callable[[], None] | None = None) -> EncodedResponse:
        """Answer a request.

        Args:
            call: What is asked for.
            body: JSON and raw tensors.
            on_begun: Told when the engine begins with it, in its thread.

        Raises:
            ServeError: The request is refused or failed; the text says why.
        """
        if call.operation == Operation.LOAD:
            await self.reload(call.target or "")
            return EncodedResponse([b"{}"], None)
        with self.registry.call():
            return await self._run(call, body, on_begun)

    async def reload(self, name: str) -> None:
        """Exchange a model for what its files are now.

        Raises:
            NotFoundError: There is no such model among the artifacts.
            BadRequestError: It cannot be loaded; the one in use stays.
        """
        async with self._reloading:
            try:
                await self.registry.reload(name)
            except ServeError:
                raise
            except Exception as error:
                logger.debug("its traceback", exc_info=True)
                raise exhausted(error) or not_loaded(self.registry, name, reason_of(error)) from error

    @property
    def queued(self) -> int:
        """Requests that wait for an engine, or that one computes."""
        return sum(model.stats.queued for model in self.registry.models.values())

    def names(self) -> set[str]:
        """All models that can be reloaded."""
        return self.registry.names()

    def check_alive(self) -> None:
        """The engines are in this process, which ends with them."""

    def check_ready(self) -> None:
        """See whether requests can be answered now.

        Raises:
            NotReadyError: Models are being loaded.
        """
        check_loaded(self.registry)

    async def _run(self, call: Call, body: memoryview, on_begun: Callable[[], None] | None) -> EncodedResponse:
        registry, work = self.registry, self._max_work_bytes
        match call.operation:
            case Operation.INFER:
                return await infer(registry.find(call.target or ""), call, body, self.regions, work, on_begun)
            case Operation.LOSS:
                return await loss(registry, call, body, work, on_begun)
            case Operation.ASSIGN:
                return await assign(registry, call, body, work, on_begun)
            case Operation.REDUCE:
                return await asyncio.to_thread(lambda: reduce(registry, body))
            case _:
                # Opening objects may block, and regions are registered and unregistered in one thread.
                return await asyncio.get_running_loop().run_in_executor(
                    self._registrar, run_region_call, self.regions, call, body
                )

    def close(self) -> None:
        """Stop all models."""
        self.registry.close()
        self._registrar.shutdown(wait=False)


class Setup(NamedTuple):
    """What a service is to be.

    Attributes:
        artifacts: Folder of the models.
        runners: What is to run them.
        limits: How far requests are put together.
        max_work_bytes: Most memory that a request may need while it is computed.
        engine_timeout: Seconds that one call of an engine may take, 0 for ever.
        shared_memory: What names of callers' shared memory begin with; None: switched off.
        max_request_bytes: Most bytes of the inputs of a request in shared memory.
        max_total_bytes: Most bytes of those of all requests.
        log_level: Least level that is logged.
        log_format: text or json.
        models: Names of the models that callers have been told of; None: any.
        failures: Names of models that are not to be loaded, each with the reason.
        regions: Those that an earlier process had; None: none.
    """

    artifacts: Path
    runners: RunnerOptions
    limits: BatchLimits
    max_work_bytes: int
    engine_timeout: float
    shared_memory: str | None
    max_request_bytes: int
    max_total_bytes: int
    log_level: str
    log_format: str
    models: tuple[str, ...] | None = None
    failures: tuple[tuple[str, str], ...] = ()
    regions: bytes | None = None

    @property
    def keep_bytes(self) -> int:
        """Most bytes of idle memory that are kept: the largest body, aligned."""
        return self.max_request_bytes + GRAIN


def service_of(setup: Setup) -> LocalService:
    """The service that a setup describes.

    Raises:
        ValueError: It cannot be.
    """
    regions = regions_of(setup)
    registry = open_artifacts(setup.artifacts, setup.runners, setup.limits)
    return LocalService(registry, regions, setup.max_work_bytes, setup.keep_bytes)


def regions_of(setup: Setup) -> Regions | None:
    """The shared memory of a setup; None: switched off.

    Raises:
        ValueError: It cannot be.
    """
    if setup.shared_memory is None:
        return None
    return Regions(setup.shared_memory, setup.max_request_bytes, setup.max_total_bytes)

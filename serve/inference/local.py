"""The service that computes in its own process, and the setup that describes one."""

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
from yolo_assigner.serve.shared_memory.regions import Regions, extensions, run_region_call
from yolo_assigner.serve.system import MIB
from yolo_assigner.serve.wire.buffers import GRAIN, BufferPool
from yolo_assigner.serve.wire.response import EncodedResponse

logger = logging.getLogger("serve")


class LocalService:
    """A :class:`yolo_assigner.serve.inference.service.Service` that computes in its own process.

    Args:
        registry: The models.
        regions: Shared memory; None: switched off.
        max_work_bytes: Most memory that computing one request may need.
        keep_bytes: Most bytes of idle body memory to keep.

    Attributes:
        registry: The models.
        memory: Memory that bodies are read into.
        extensions: Extensions of the protocol, beyond binary tensors.
        restarts: Always 0.
        regions: As given.
        pid: Always None: there is no engine process.
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
        self.extensions: Sequence[str] = extensions(regions is not None)
        self.regions = regions
        self._max_work_bytes = max_work_bytes
        self._reloading = asyncio.Lock()  # one at a time: each needs the memory of two models
        self._registrar = ThreadPoolExecutor(1, thread_name_prefix="regions")

    async def load(self, on_change: Callable[[Model], Awaitable[None]] | None = None) -> None:
        """Load all models. Those that cannot be loaded are among the registry's failures.

        Args:
            on_change: Awaited before and after each model is loaded.

        Raises:
            Exception: No model can be loaded.
        """
        async with self._reloading:
            await self.registry.load(on_change)

    async def reload(self, name: str) -> None:
        """See :meth:`yolo_assigner.serve.inference.service.Service.reload`."""
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

    def check_alive(self) -> None:
        """Do nothing: there is no engine process to wait for."""

    def check_ready(self) -> None:
        """See :meth:`yolo_assigner.serve.inference.service.Service.check_ready`."""
        check_loaded(self.registry)

    def check(self, name: str | None = None) -> None:
        """See :meth:`yolo_assigner.serve.inference.service.Service.check`."""
        check_loaded(self.registry, name)

    async def run(self, call: Call, body: memoryview, on_begun: Callable[[], None] | None = None) -> EncodedResponse:
        """See :meth:`yolo_assigner.serve.inference.service.Service.run`.

        The v1 JSON API is imported with its first request: its schemas are a third of what the engine process imports.

        Args:
            call: The request but for its body.
            body: JSON and raw tensors.
            on_begun: Called in the engine's thread when computing begins.
        """
        registry, limit = self.registry, self._max_work_bytes
        with registry.call():
            match call.operation:
                case Operation.INFER:
                    return await infer(registry.find(call.target or ""), call, body, self.regions, limit, on_begun)
                case Operation.LOSS | Operation.ASSIGN | Operation.EXPLAIN:
                    from yolo_assigner.serve.v1.operations import detect

                    return await detect(registry, call, body, limit, on_begun)
                case Operation.REDUCE:
                    from yolo_assigner.serve.v1.operations import reduce

                    return await asyncio.to_thread(reduce, registry, body)
                case _:
                    # Opening objects may block, and one thread registers and unregisters all regions.
                    return await asyncio.get_running_loop().run_in_executor(
                        self._registrar, run_region_call, self.regions, call, body
                    )

    def close(self) -> None:
        """Close all models."""
        self.registry.close()
        self._registrar.shutdown(wait=False)


class Setup(NamedTuple):
    """Describes a service; sent to the engine process.

    Attributes:
        artifacts: Folder of the models.
        runners: Engine, device and threads.
        limits: Limits of dynamic batching.
        max_work_bytes: Most memory that computing one request may need.
        engine_timeout: Seconds that one call of an engine may take; 0: no limit.
        shared_memory: Prefix of the names of callers' shared memory; None: switched off.
        max_request_bytes: Most bytes of one request's inputs in shared memory.
        max_total_bytes: Most bytes of all requests' inputs in shared memory.
        log_level: Least level that is logged.
        log_format: text or json.
        models: Names of the models that callers have been told of; None: any.
        failures: Models that are not to be loaded, with reasons.
        regions: Regions registered in an earlier process; None: none.
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
        """Most bytes of idle body memory to keep: the largest body, aligned."""
        return self.max_request_bytes + GRAIN


def service_of(setup: Setup) -> LocalService:
    """Make the service that a setup describes, without loading its models.

    Raises:
        ValueError: The artifacts, the engine or the shared memory cannot be used.
    """
    regions = regions_of(setup)
    registry = open_artifacts(setup.artifacts, setup.runners, setup.limits)
    return LocalService(registry, regions, setup.max_work_bytes, setup.keep_bytes)


def regions_of(setup: Setup) -> Regions | None:
    """Make the shared memory of a setup; None: switched off.

    Raises:
        ValueError: It cannot be used.
    """
    if setup.shared_memory is None:
        return None
    return Regions(setup.shared_memory, setup.max_request_bytes, setup.max_total_bytes)

"""A service in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from yolo_assigner.serve.compute.infer import infer
from yolo_assigner.serve.compute.people import assign, loss, reduce
from yolo_assigner.serve.compute.regions import run_region_call
from yolo_assigner.serve.compute.service import Call, Verb
from yolo_assigner.serve.engine.catalogue import check_loaded, not_loaded, reason_of
from yolo_assigner.serve.engine.model import Model
from yolo_assigner.serve.engine.registry import Registry
from yolo_assigner.serve.errors import ServeError, exhausted
from yolo_assigner.serve.settings import MIB
from yolo_assigner.serve.shared.region import Kind
from yolo_assigner.serve.shared.regions import Regions
from yolo_assigner.serve.tensors.buffers import BufferPool
from yolo_assigner.serve.tensors.encode import EncodedResponse

logger = logging.getLogger("serve")
EXTENSIONS = {Kind.SYSTEM: "system_shared_memory", Kind.CUDA: "cuda_shared_memory"}


class LocalService:
    """Computes where it is called.

    Args:
        registry: The models.
        regions: Shared memory; None: switched off.
        max_work_bytes: Most memory that a request may need while it is computed.
        keep_bytes: Most bytes of idle memory for bodies that are kept.

    Attributes:
        catalogue: The models.
        memory: What bodies are to be read into.
        extensions: Of the protocol, beyond binary tensors.
        restarts: 0.
        regions: As given.
        pid: None: the engines have no process of their own.
    """

    pid = None

    def __init__(
        self,
        registry: Registry,
        regions: Regions | None = None,
        max_work_bytes: int = 4096 * MIB,
        keep_bytes: int = 256 * MIB,
    ) -> None:
        self.catalogue = registry
        self.memory = BufferPool(keep_bytes)
        self.restarts = 0
        self.extensions: Sequence[str] = [EXTENSIONS[kind] for kind in regions.kinds] if regions is not None else []
        self.regions = regions
        self._max_work_bytes = max_work_bytes
        self._reloading = asyncio.Lock()  # one at a time: each needs the memory of two models
        self._registrar = ThreadPoolExecutor(1, thread_name_prefix="regions")

    async def load(self, on_change: Callable[[Model], Awaitable[None]] | None = None) -> None:
        """Bring all models up. Those that cannot be loaded are among the catalogue's failures.

        Args:
            on_change: Waited for before each model is loaded and after it.

        Raises:
            Exception: No model can be loaded, or shared memory cannot be used.
        """
        if self.regions is not None:
            await asyncio.to_thread(self.regions.load)
        async with self._reloading:
            await self.catalogue.load(on_change)

    def check(self, name: str | None = None) -> None:
        """See that a model, or all of them, can be used.

        Raises:
            NotReadyError: It is still being loaded.
            ModelFailedError: It cannot be loaded.
        """
        check_loaded(self.catalogue, name)

    async def run(self, call: Call, body: memoryview, on_begun: Callable[[], None] | None = None) -> EncodedResponse:
        """Answer a request.

        Args:
            call: What is asked for.
            body: JSON and raw tensors.
            on_begun: Told when the engine begins with it, in its thread.

        Raises:
            ServeError: The request is refused or failed; the text says why.
        """
        if call.verb == Verb.LOAD:
            await self.reload(call.target or "")
            return EncodedResponse([b"{}"], None)
        with self.catalogue.call():
            return await self._run(call, body, on_begun)

    async def reload(self, name: str) -> None:
        """Exchange a model for what its files are now.

        Raises:
            NotFoundError: There is no such model among the artifacts.
            BadRequestError: It cannot be loaded; the one in use stays.
        """
        async with self._reloading:
            try:
                await self.catalogue.reload(name)
            except ServeError:
                raise
            except Exception as error:
                logger.debug("its traceback", exc_info=True)
                raise exhausted(error) or not_loaded(self.catalogue, name, reason_of(error)) from error

    def names(self) -> set[str]:
        """All models that can be reloaded."""
        return self.catalogue.names()

    def check_alive(self) -> None:
        """The engines are in this process, which ends with them."""

    def check_ready(self) -> None:
        """See whether requests can be answered now.

        Raises:
            NotReadyError: Models are being loaded.
        """
        check_loaded(self.catalogue)

    async def _run(self, call: Call, body: memoryview, on_begun: Callable[[], None] | None) -> EncodedResponse:
        registry, work = self.catalogue, self._max_work_bytes
        match call.verb:
            case Verb.INFER:
                return await infer(registry.find(call.target or ""), call, body, self.regions, work, on_begun)
            case Verb.LOSS:
                return await loss(registry, call, body, work, on_begun)
            case Verb.ASSIGN:
                return await assign(registry, call, body, work, on_begun)
            case Verb.REDUCE:
                return await asyncio.to_thread(lambda: reduce(registry, body))
            case _:
                # GPUs take their time, and regions are registered and forgotten in one thread.
                return await asyncio.get_running_loop().run_in_executor(
                    self._registrar, run_region_call, self.regions, call, body
                )

    def close(self) -> None:
        """Stop all models."""
        self.catalogue.close()
        self._registrar.shutdown(wait=False)

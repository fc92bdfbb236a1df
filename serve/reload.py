"""What SIGHUP does: keys, certificate and models are read again while requests are served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from yolo_assigner.serve.compute.service import Service
from yolo_assigner.serve.engine.catalogue import reason_of

logger = logging.getLogger("serve")


class Reloader:
    """Reads again what the server was started with. What cannot be used is logged, and what is in use stays.

    Args:
        service: Whose models are reloaded.
        files: By name for the log, what reads files again, as keys; each raises an error and changes nothing when they
            cannot be used.
    """

    def __init__(self, service: Service, files: Mapping[str, Callable[[], None]]) -> None:
        self._service = service
        self._files = files
        self._running: asyncio.Task[None] | None = None
        self._again = False

    def start(self) -> None:
        """Begin to reload, or once more after the reload that is under way. Called in the event loop's thread."""
        if self._running is not None and not self._running.done():
            self._again = True
            return
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self._again = False
            await self._reload()
            if not self._again:
                return

    async def _reload(self) -> None:
        logger.info("reloading, as SIGHUP asks")
        for name, read in self._files.items():
            try:
                await asyncio.to_thread(read)
            except Exception as error:
                logger.error("%s not reloaded: %s", name, reason_of(error))
            else:
                logger.info("%s reloaded", name)
        for model in sorted(await asyncio.to_thread(self._service.names)):
            try:
                await self._service.reload(model)
            except Exception as error:
                logger.error("model %s not reloaded: %s", model, reason_of(error))
        logger.info("reloading is done")

"""Stopping on SIGTERM and SIGINT, in the order that load balancers need, and reloading on SIGHUP."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType

import uvicorn

from yolo_assigner.serve.http.admission import Admission
from yolo_assigner.serve.inference.registry import reason_of
from yolo_assigner.serve.inference.service import Service
from yolo_assigner.serve.system import helper_threads

logger = logging.getLogger("serve")


class Server(uvicorn.Server):
    """uvicorn with a shutdown that loses no requests behind a load balancer.

    The first SIGTERM or SIGINT makes it a lame duck: readiness fails and replies close their connections, while
    requests are served as before, so that callers can go elsewhere. After that time it refuses new requests, and ends
    when all requests have ended or the drain time is over. A second signal ends the process at once.

    Args:
        config: Its ``timeout_graceful_shutdown`` is the drain time.
        admission: Closes connections, and later refuses requests.
        lame_duck_seconds: How long it still serves.
        on_hangup: Called in the event loop's thread for every SIGHUP.
        on_closing: Called before the sockets are closed.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        admission: Admission,
        lame_duck_seconds: float,
        on_hangup: Callable[[], None] = lambda: None,
        on_closing: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._on_hangup = on_hangup
        self._on_closing = on_closing
        self._admission = admission
        self._lame_duck_seconds = lame_duck_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until stopped."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(helper_threads())
        # Not the event loop's handler: after the loop's end the signal would end the process.
        signal.signal(signal.SIGHUP, lambda *_: self._soon(self._on_hangup))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # one that came during the start is handled now
        try:
            await super().serve(sockets)
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, and wait for requests under way."""
        self._on_closing()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle SIGTERM or SIGINT. Called between any two operations of the main thread."""
        if self._admission.closing:
            # End at once, also when standard error is closed or nothing reads it.
            with suppress(OSError):
                if select.select((), (2,), (), 0)[1]:
                    os.write(2, b"serve: ended by a second signal\n")
            os._exit(128 + sig)
        self.stop(f"{signal.Signals(sig).name}; serving {self._lame_duck_seconds:g} s more, then draining")

    def stop(self, reason: str) -> None:
        """Begin to stop. May be called from any thread."""
        self._admission.closing = True
        self._soon(lambda: self._become_lame(reason))

    def _become_lame(self, reason: str) -> None:
        logger.info("stopping: %s", reason)
        asyncio.get_running_loop().call_later(self._lame_duck_seconds, self._drain)

    def _drain(self) -> None:
        self._admission.draining = True
        logger.info("draining: %d requests are under way", self._admission.requests)
        self.should_exit = True

    def _soon(self, call: Callable[[], None]) -> None:
        if self._loop is None:
            self.should_exit = True  # the event loop does not run yet
        else:
            self._loop.call_soon_threadsafe(call)


class Reloader:
    """Reloads keys, certificate and models. On an error the old ones stay in use, and the error is logged.

    Args:
        service: Reloads the models.
        files: Functions that reload files, by their names in the log. Each raises an error and changes nothing when a
            file cannot be used.
    """

    def __init__(self, service: Service, files: Mapping[str, Callable[[], None]]) -> None:
        self._service = service
        self._files = files
        self._running: asyncio.Task[None] | None = None
        self._again = False

    def start(self) -> None:
        """Begin to reload, or repeat the reload that is under way. Called in the event loop's thread."""
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
        for model in sorted(await asyncio.to_thread(self._service.registry.names)):
            try:
                await self._service.reload(model)
            except Exception as error:
                logger.error("model %s not reloaded: %s", model, reason_of(error))
        logger.info("reloading is done")

"""One replica: the service's application in a process of Ray's, with the models in the same process.

Ray's proxy is already a process of its own, which reads bodies and refuses; a replica that fails is replaced, and the
others go on. An engine process beside each replica would add a copy of every body, and little else. ``engine_process``
chooses it all the same, for ``engine_timeout``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolo_assigner.serve.app import create_app
from yolo_assigner.serve.cli import make_parts, make_service
from yolo_assigner.serve.cluster.options import replica_settings
from yolo_assigner.serve.errors import UnsupportedError
from yolo_assigner.serve.inference.service import Service
from yolo_assigner.serve.logs import configure_logs
from yolo_assigner.serve.system import keep_large_blocks, shorten_switch_interval
from yolo_assigner.serve.versions import OURS, SERVER_HEADER

NO_RELOAD = "one replica of several would be reloaded; change ray_revision in the Serve config and deploy it again"


class Replica:
    """The class of the deployment; Ray makes it an ASGI application with :meth:`__serve_build_asgi_app__`.

    Args:
        arguments: Settings by name, as values of JSON.

    Raises:
        ValueError: They, the artifacts or a file of keys cannot be used.
    """

    async def __init__(self, arguments: Mapping[str, Any]) -> None:  # type: ignore[misc]
        self._settings = replica_settings(arguments)
        configure_logs(self._settings.log_level, self._settings.log_format)
        shorten_switch_interval()
        keep_large_blocks()
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._service = _without_reload(make_service(self._settings))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the application. Its models are loaded once it starts; see :meth:`check_health`."""
        parts = make_parts(self._settings, self._loaded.set_exception)
        finish = parts.on_loaded or (lambda: None)

        def loaded() -> None:
            finish()
            self._loaded.set_result(None)

        app = create_app(self._service, self._settings, replace(parts, on_loaded=loaded))
        app.add_middleware(_RayMessages)
        return app

    async def check_health(self) -> None:
        """Tell Ray whether this replica works. The first call waits for the models: until then others are in use.

        Raises:
            Exception: No model can be loaded, or the engine process cannot be started.
        """
        await asyncio.shield(self._loaded)
        self._service.check_alive()


def _without_reload(service: Service) -> Service:
    """Make a service refuse to load single models anew."""

    async def refuse(name: str) -> None:  # noqa: ARG001
        raise UnsupportedError(NO_RELOAD)

    service.reload = refuse  # type: ignore[method-assign]
    return service


class _RayMessages:
    """Makes messages that Ray can send to its proxy, and names the version as the service's own HTTP server does.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_plain(message: Message) -> None:
            if message["type"] == "http.response.start":
                version = (SERVER_HEADER.lower().encode(), OURS.encode())
                message = {**message, "headers": [*message.get("headers", ()), version]}
            elif isinstance(body := message.get("body"), memoryview):
                message = {**message, "body": bytes(body)}  # its memory is used again once this call returns
            await send(message)

        await self._app(scope, receive, send_plain)

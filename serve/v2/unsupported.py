"""The protocol on HTTP: the rest of row 11, what this server does not do, and what to do instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response

from yolo_assigner.serve.errors import UnsupportedError

UNLOADING = "models cannot be unloaded; remove the files from --artifacts and start the server again"
TRACING = "tracing is not available; --log-level debug shows every request"
LOGGING = "logging cannot be changed here; start the server with another --log-level"
ROUTES = {
    "POST /repository/models/{name}/unload": UNLOADING,
    "GET /trace/setting": TRACING,
    "POST /trace/setting": TRACING,
    "GET /models/{name}/trace/setting": TRACING,
    "POST /models/{name}/trace/setting": TRACING,
    "GET /logging": LOGGING,
    "POST /logging": LOGGING,
}


def unsupported_routes() -> APIRouter:
    """Routes that are refused."""
    router = APIRouter(prefix="/v2", include_in_schema=False)

    for route, reason in ROUTES.items():
        verb, path = route.split()
        router.add_api_route(path, _refusing(reason), methods=[verb])
    return router


def _refusing(reason: str) -> Callable[[], Awaitable[Response]]:
    async def refuse() -> Response:
        raise UnsupportedError(reason)

    return refuse

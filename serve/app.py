"""The application: routes, errors, and the models' coming and going."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from serve.body import BodyReader
from serve.core import Registry
from serve.dataplane import server_metadata
from serve.errors import ClientGoneError, ServeError
from serve.rest_v1 import add_people_routes
from serve.rest_v2 import health_routes, infer_routes, reply

MAX_REQUEST_BYTES = 256 * 2**20
ABOUT = """YOLOv8's label assignment and detection loss.

Programs use the Open Inference Protocol under `/v2`, for example with `tritonclient`; people use typed JSON under
`/v1`.
Errors are `{"error": "text"}`. NaN and the infinities are `null` in JSON.
"""
logger = logging.getLogger("serve")


def create_app(
    registry: Registry,
    *,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    on_load_failure: Callable[[BaseException], None] | None = None,
) -> FastAPI:
    """Build the ASGI application.

    Args:
        registry: The models; they are loaded in the background once the application starts.
        max_request_bytes: Largest body, before and after decompression.
        on_load_failure: Told when a model cannot be loaded; the server then never gets ready.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(registry, on_load_failure))
        try:
            yield
        finally:
            loading.cancel()
            registry.close()

    app = FastAPI(
        title="yolo-assigner",
        version=server_metadata()["version"],
        description=ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.include_router(health_routes(registry))
    bodies = BodyReader(max_request_bytes)
    app.include_router(infer_routes(registry, bodies))
    add_people_routes(app, registry, bodies)
    app.add_exception_handler(ServeError, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(ClientGoneError, _gone)
    app.add_exception_handler(Exception, _failed)
    return app


async def _load(registry: Registry, on_failure: Callable[[BaseException], None] | None) -> None:
    try:
        await registry.load()
    except Exception as error:
        logger.error("a model cannot be loaded: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
        if on_failure is not None:
            on_failure(error)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)  # noqa: S101 - the handler is registered for it alone
    return reply({"error": str(error)}, error.status, error.headers)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    text = f"{request.method} {request.url.path}: {error.detail}; the paths are listed at /docs"
    return reply({"error": text}, error.status_code, error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # written to a closed connection


async def _failed(_: Request, __: Exception) -> Response:
    """The traceback goes to the log, where the framework writes it, and not to the caller."""
    return reply({"error": "the server failed on this request; its log has details"}, 500)

"""The application: routes, errors, and the models' coming and going."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from yolo_assigner.serve.errors import ClientDisconnectedError, ServeError, exhausted
from yolo_assigner.serve.http.admission import Admission, AdmissionGate
from yolo_assigner.serve.http.auth import KeyGuard
from yolo_assigner.serve.http.body import BodyReader
from yolo_assigner.serve.http.compression import CompressReplies
from yolo_assigner.serve.http.disconnect import Linger
from yolo_assigner.serve.http.observe import Observer
from yolo_assigner.serve.http.openapi import add_docs_page, document_requests
from yolo_assigner.serve.http.origins import CrossOrigin, OriginGuard
from yolo_assigner.serve.http.replies import error_reply, reply
from yolo_assigner.serve.http.routes_v1 import add_people_routes
from yolo_assigner.serve.http.routes_v2 import (
    health_routes,
    infer_routes,
    repository_routes,
    server_metadata,
    shared_memory_routes,
    triton_routes,
)
from yolo_assigner.serve.inference.registry import ModelInfo, log_failure
from yolo_assigner.serve.inference.service import Service
from yolo_assigner.serve.options import AppOptions

ABOUT = """YOLOv8's label assignment and detection loss.

Programs use the Open Inference Protocol under `/v2`, for example with `tritonclient`; people use typed JSON under
`/v1`.
Errors are `{"error": "text"}`. NaN and the infinities are `null` in JSON.
"""
logger = logging.getLogger("serve")


def create_app(service: Service, options: AppOptions | None = None) -> FastAPI:
    """Build the ASGI application.

    Args:
        service: What answers; its models are loaded in the background once the application starts.
        options: Limits and parts.
    """
    options = options or AppOptions()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(service, options))
        try:
            yield
        finally:
            loading.cancel()
            service.close()

    app = FastAPI(
        title="yolo-assigner",
        version=server_metadata()["version"],
        description=ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    bodies = BodyReader(options.max_request_bytes, options.max_json_bytes, options.client_timeout, pool=service.memory)
    app.include_router(health_routes(service, options))
    app.include_router(infer_routes(service, bodies, options))
    app.include_router(repository_routes(service, options))
    app.include_router(shared_memory_routes(service, options))
    app.include_router(triton_routes())
    add_people_routes(app, service, bodies, options)
    document_requests(app, service.registry)
    add_docs_page(app)
    app.add_exception_handler(ServeError, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(ClientDisconnectedError, _gone)
    for shortage in (OSError, MemoryError):
        app.add_exception_handler(shortage, _exhausted)
    app.add_exception_handler(Exception, _failed)
    _wrap(app, options)
    _watch(service, options)
    return app


def _wrap(app: FastAPI, options: AppOptions) -> None:
    """What every request passes before it is routed; the last one added comes first."""
    app.add_middleware(AdmissionGate, admission=options.admission, unknown_size=options.max_request_bytes)
    app.add_middleware(KeyGuard, keys=options.keys)
    if options.origins.pages:
        app.add_middleware(CrossOrigin, pages=options.origins.pages)
    app.add_middleware(OriginGuard, origins=options.origins)
    if options.compress_replies:
        app.add_middleware(CompressReplies)
    app.add_middleware(Linger)
    app.add_middleware(Observer, metrics=options.metrics)


def _watch(service: Service, options: AppOptions) -> None:
    """Let the metrics see what goes on."""
    metrics, admission, registry = options.metrics, options.admission, service.registry
    metrics.describe({"version": server_metadata()["version"]})
    metrics.watch("requests_under_way", "Requests from headers to reply.", lambda: admission.requests)
    metrics.watch("bytes_under_way", "Bytes of their bodies.", lambda: admission.bytes)
    metrics.watch("ready", "1 while /v2/health/ready is 200, else 0.", lambda: _is_ready(service, admission))
    metrics.watch(
        "models_ready", "Models that can be used.", lambda: sum(model.ready for model in registry.models.values())
    )
    metrics.watch("models_failed", "Models that cannot be loaded.", lambda: len(registry.failures))
    metrics.watch(
        "queued_requests",
        "Requests in or before an engine.",
        lambda: service.queued,
    )
    metrics.watch_count(
        "engine_restarts", "Times that the engines' process was started again.", lambda: service.restarts
    )
    metrics.watch_process(lambda: service.pid)

    def count(model: ModelInfo) -> None:
        name = model.contract.name
        model.stats.on_called, model.stats.on_waited = partial(metrics.called, name), partial(metrics.waited, name)

    registry.watch(count)


def _is_ready(service: Service, admission: Admission) -> bool:
    try:
        service.check_ready()
    except ServeError:
        return False
    return not admission.closing


async def _load(service: Service, options: AppOptions) -> None:
    try:
        for name, reason in service.registry.failures.items():
            log_failure(name, reason)
        await service.load()
        if options.on_loaded is not None:
            options.on_loaded()
    except Exception as error:
        if options.admission.closing:
            return
        logger.error("a model cannot be loaded: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
        if options.on_load_failure is not None:
            options.on_load_failure(error)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)  # noqa: S101 - the handler is registered for it alone
    return error_reply(error, request.scope)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    text = f"{request.method} {request.url.path}: {error.detail}; the paths are listed at /docs"
    return reply({"error": text}, error.status_code, error.headers)


async def _exhausted(request: Request, error: Exception) -> Response:
    busy = exhausted(error)
    if busy is None:
        raise error
    logger.warning("a request is refused: %s", error)
    return error_reply(busy, request.scope)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # written to a closed connection


async def _failed(_: Request, __: Exception) -> Response:
    """The traceback goes to the log, where the framework writes it, and not to the caller."""
    return reply({"error": "the server failed on this request; its log has details"}, 500)

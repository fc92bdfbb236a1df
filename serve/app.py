"""The application: middleware, endpoints, error replies, and loading of the models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from yolo_assigner.serve.errors import ClientDisconnectedError, ServeError, exhausted
from yolo_assigner.serve.http.admission import Admission, AdmissionGate
from yolo_assigner.serve.http.auth import KeyGuard, Keys
from yolo_assigner.serve.http.body import BodyReader
from yolo_assigner.serve.http.compression import CompressReplies
from yolo_assigner.serve.http.disconnect import Linger
from yolo_assigner.serve.http.metrics import Metrics
from yolo_assigner.serve.http.observe import Observer
from yolo_assigner.serve.http.openapi import add_docs_page, add_inspector, add_route, complete_document
from yolo_assigner.serve.http.origins import CrossOrigin, OriginGuard, Origins
from yolo_assigner.serve.http.replies import error_reply, reply
from yolo_assigner.serve.http.routes import ROUTES
from yolo_assigner.serve.http.routes_v1 import v1_handlers
from yolo_assigner.serve.http.routes_v2 import refusing, v2_handlers
from yolo_assigner.serve.inference.registry import ModelInfo, log_failure
from yolo_assigner.serve.inference.service import Service
from yolo_assigner.serve.settings import Settings
from yolo_assigner.serve.system import MIB
from yolo_loss import __version__

ABOUT = """YOLOv8's label assignment and detection loss.

Programs use the Open Inference Protocol under `/v2`, for example with `tritonclient`; typed JSON under `/v1` can be
written by hand.
Errors are `{"error": "text"}`. NaN and the infinities are `null` in JSON.
"""
logger = logging.getLogger("serve")


@dataclass(frozen=True)
class AppParts:
    """Objects that an application shares with the rest of the server.

    Attributes:
        admission: Limits what is under way, and says whether the server is stopping.
        keys: Keys that callers need.
        origins: Hosts and origins that requests may name.
        metrics: Counts requests.
        on_loaded: Called when all models are loaded.
        on_load_failure: Called when no model can be loaded; the server then never gets ready.
    """

    admission: Admission = field(default_factory=lambda: Admission(64, 1024 * MIB))
    keys: Keys = field(default_factory=Keys)
    origins: Origins = field(default_factory=Origins)
    metrics: Metrics = field(default_factory=Metrics)
    on_loaded: Callable[[], None] | None = None
    on_load_failure: Callable[[BaseException], None] | None = None


def create_app(service: Service, settings: Settings | None = None, parts: AppParts | None = None) -> FastAPI:
    """Build the ASGI application.

    Args:
        service: Runs the models, which are loaded in the background once the application starts.
        settings: Limits and time limits; defaults when None.
        parts: Shared objects; new ones when None.
    """
    settings = settings or Settings(artifacts=Path())
    parts = parts or AppParts()
    app = FastAPI(
        title="yolo-assigner",
        version=__version__,
        description=ABOUT,
        lifespan=lambda _: _lifespan(service, parts),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,  # a field with a default may be missing in a reply, too
    )
    _add_routes(app, service, settings, parts)
    _add_error_handlers(app)
    _add_middleware(app, settings, parts)
    _add_metrics(service, parts)
    return app


def _add_routes(app: FastAPI, service: Service, settings: Settings, parts: AppParts) -> None:
    timeout = settings.client_timeout or None
    bodies = BodyReader(settings.max_request_bytes, settings.max_json_bytes, timeout, pool=service.memory)
    handlers = {
        **v1_handlers(service, bodies, settings),
        **v2_handlers(service, bodies, settings, parts.admission),
    }
    for route in ROUTES:
        add_route(app, route, refusing(route.unsupported) if route.unsupported else handlers[route.name])
    complete_document(app, service.registry)
    add_docs_page(app)
    add_inspector(app)


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ServeError, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(ClientDisconnectedError, _disconnected)
    for shortage in (OSError, MemoryError):
        app.add_exception_handler(shortage, _exhausted)
    app.add_exception_handler(Exception, _failed)


def _add_middleware(app: FastAPI, settings: Settings, parts: AppParts) -> None:
    """Add what every request passes before it is routed. The last one added comes first."""
    app.add_middleware(AdmissionGate, admission=parts.admission, unknown_size=settings.max_request_bytes)
    app.add_middleware(KeyGuard, keys=parts.keys)
    if parts.origins.pages:
        app.add_middleware(CrossOrigin, pages=parts.origins.pages)
    app.add_middleware(OriginGuard, origins=parts.origins)
    if settings.compress_replies:
        app.add_middleware(CompressReplies)
    app.add_middleware(Linger)
    app.add_middleware(Observer, metrics=parts.metrics)


def _add_metrics(service: Service, parts: AppParts) -> None:
    metrics, admission, registry = parts.metrics, parts.admission, service.registry
    metrics.describe({"version": __version__})
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


@asynccontextmanager
async def _lifespan(service: Service, parts: AppParts) -> AsyncIterator[None]:
    loading = asyncio.create_task(_load(service, parts))
    try:
        yield
    finally:
        loading.cancel()
        service.close()


async def _load(service: Service, parts: AppParts) -> None:
    try:
        for name, reason in service.registry.failures.items():
            log_failure(name, reason)
        await service.load()
        if parts.on_loaded is not None:
            parts.on_loaded()
    except Exception as error:
        if parts.admission.closing:
            return
        logger.error("a model cannot be loaded: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
        if parts.on_load_failure is not None:
            parts.on_load_failure(error)


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


async def _disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # counted in the metrics; nothing is sent, as the connection is closed


async def _failed(_: Request, __: Exception) -> Response:
    """Keep the traceback from the caller; the framework logs it."""
    return reply({"error": "the server failed on this request; its log has details"}, 500)

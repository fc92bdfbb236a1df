"""Handlers of the v1 JSON API."""

from __future__ import annotations

from fastapi import Request, Response

from yolo_assigner.serve.http.body import BodyReader
from yolo_assigner.serve.http.disconnect import unless_disconnected
from yolo_assigner.serve.http.openapi import Handler
from yolo_assigner.serve.http.replies import ReplyInParts
from yolo_assigner.serve.http.routes import ROUTES, V1, Route
from yolo_assigner.serve.inference.service import Operation, Service, new_call
from yolo_assigner.serve.settings import Settings


def v1_handlers(service: Service, bodies: BodyReader, settings: Settings) -> dict[str, Handler]:
    """Handlers by the names of their routes, which are those of the operations that they run.

    FastAPI does not read the bodies: they are bounded, may be compressed, need no Content-Type, and are parsed outside
    the event loop.

    Args:
        service: Computes the replies.
        bodies: Reads the requests.
        settings: ``request_timeout`` is read.
    """

    def handler_of(route: Route) -> Handler:
        async def answer(request: Request) -> Response:
            if route.needs_models:
                service.check()
            body = await bodies.read(request.scope, request.receive)
            call = new_call(Operation(route.name), allowed=settings.request_timeout or None)
            return ReplyInParts(await unless_disconnected(request.receive, service.run(call, body)))

        return answer

    return {route.name: handler_of(route) for route in ROUTES if route.tag == V1}

"""The protocol on HTTP: rows 1 to 6. Each route asks the core and writes down what it says."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from starlette.types import Receive, Scope, Send

from serve.engine.registry import VERSION, Registry
from serve.errors import BusyError, NotReadyError
from serve.http.body import BodyReader, header_number
from serve.http.gone import unless_gone
from serve.http.replies import reply
from serve.options import AppOptions
from serve.tensors.encode import EncodedResponse
from serve.v2 import dataplane

JSON_LENGTH = "Inference-Header-Content-Length"


async def _version(request: Request) -> str | None:
    return request.path_params.get("version")  # of a path that has one; never from elsewhere


Version = Annotated[str | None, Depends(_version)]


class TensorResponse(Response):
    """A reply in parts, each sent from where it lies.

    Args:
        encoded: The parts.
    """

    def __init__(self, encoded: EncodedResponse) -> None:
        binary = encoded.header_length is not None
        headers = {"Content-Length": str(sum(len(chunk) for chunk in encoded.chunks))}
        if binary:
            headers[JSON_LENGTH] = str(encoded.header_length)
        media_type = "application/octet-stream" if binary else "application/json"
        super().__init__(headers=headers, media_type=media_type)
        self._chunks = encoded.chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the parts as one body."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = len(self._chunks) - 1
        for place, chunk in enumerate(self._chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": place < last})


def health_routes(registry: Registry, options: AppOptions) -> APIRouter:
    """Rows 1 to 5 and 8: what the server and its models are, whether they can be used, and what they have done."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.get("/health/live", summary="The process answers")
    async def live() -> Response:
        return reply({"live": True})

    @router.get("/health/ready", summary="Every model can be used; 503 while loading or stopping")
    async def ready() -> Response:
        if options.admission.closing:
            raise BusyError("this server is about to stop; send requests to another one")
        if not registry.ready:
            raise NotReadyError("models are being loaded; try again in a moment")
        return reply({"ready": True})

    @router.get("", summary="Name, version and extensions of the server")
    async def server() -> Response:
        return reply(dataplane.server_metadata(shared_memory=options.regions is not None))

    @router.get("/models/{name}/versions/{version}/ready", summary="One version can be used")
    @router.get("/models/{name}/ready", summary="One model can be used")
    async def model_ready(name: str, version: Version) -> Response:
        if not registry.find(name, version).ready:
            raise NotReadyError(f"model {name!r} is being loaded; try again in a moment")
        return reply({"name": name, "ready": True})

    @router.get("/models/stats", summary="What all models have done")
    @router.get("/models/{name}/versions/{version}/stats", summary="What one version has done")
    @router.get("/models/{name}/stats", summary="What one model has done")
    async def stats(request: Request, version: Version) -> Response:
        name = request.path_params.get("name")
        models = registry.models.values() if name is None else [registry.find(name, version)]
        return reply({"model_stats": [model.stats.as_json(model.contract.name, VERSION) for model in models]})

    @router.get("/models/{name}/versions/{version}", summary="Inputs and outputs of one version")
    @router.get("/models/{name}", summary="Inputs and outputs of one model")
    async def model(name: str, version: Version) -> Response:
        return reply(dataplane.model_metadata(registry.find(name, version)))

    return router


def infer_routes(registry: Registry, bodies: BodyReader, options: AppOptions) -> APIRouter:
    """Row 6. The body is taken from the raw stream: clients send no Content-Type."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.post("/models/{name}/versions/{version}/infer", summary="Run one version")
    @router.post("/models/{name}/infer", summary="Run one model")
    async def infer(request: Request, name: str, version: Version) -> Response:
        model = registry.find(name, version)
        if not model.ready:
            raise NotReadyError(f"model {name!r} is being loaded; try again in a moment")
        json_length = header_number(request.headers, JSON_LENGTH)
        body = await bodies.read(request.scope, request.receive, json_length)
        work = dataplane.infer(model, body, json_length, options)
        return TensorResponse(await unless_gone(request.receive, work))

    return router

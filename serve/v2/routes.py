"""The protocol on HTTP: rows 1 to 6. Each route asks the core and writes down what it says."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from yolo_assigner.serve.compute.service import Service, Verb, call_now
from yolo_assigner.serve.engine.catalogue import VERSION, check_loaded
from yolo_assigner.serve.errors import BusyError
from yolo_assigner.serve.http.body import BodyReader, header_number
from yolo_assigner.serve.http.gone import unless_gone
from yolo_assigner.serve.http.replies import JSON_LENGTH, ReplyInParts, reply
from yolo_assigner.serve.options import AppOptions
from yolo_assigner.serve.v2.metadata import model_metadata, server_metadata
from yolo_assigner.serve.versions import CLIENT_HEADER, check_client


async def _version(request: Request) -> str | None:
    return request.path_params.get("version")  # of a path that has one; never from elsewhere


Version = Annotated[str | None, Depends(_version)]


def health_routes(service: Service, options: AppOptions) -> APIRouter:
    """Rows 1 to 5 and 8: what the server and its models are, whether they can be used, and what they have done."""
    catalogue = service.catalogue
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    # The lower route is added first and answers both verbs; the upper one describes them: OpenAPI has a reply's body
    # in every entry, and HEAD has none.
    @router.get("/health/live", summary="The process is of use, or will be; HEAD like GET")
    @router.api_route("/health/live", methods=["GET", "HEAD"], include_in_schema=False)
    async def live() -> Response:
        service.check_alive()
        return reply({"live": True})

    @router.get("/health/ready", summary="Models can be used; 503 while loading or stopping; HEAD like GET")
    @router.api_route("/health/ready", methods=["GET", "HEAD"], include_in_schema=False)
    async def ready() -> Response:
        if options.admission.closing:
            raise BusyError("this server is about to stop; send requests to another one")
        service.check_ready()
        return reply({"ready": True})

    @router.get("", summary="Name, version and extensions of the server")
    async def server() -> Response:
        return reply(server_metadata(service.extensions))

    @router.get("/models/{name}/versions/{version}/ready", summary="One version can be used")
    @router.get("/models/{name}/ready", summary="One model can be used")
    async def model_ready(name: str, version: Version) -> Response:
        catalogue.find(name, version)
        check_loaded(catalogue, name)
        return reply({"name": name, "ready": True})

    @router.get("/models/stats", summary="What all models have done")
    @router.get("/models/{name}/versions/{version}/stats", summary="What one version has done")
    @router.get("/models/{name}/stats", summary="What one model has done")
    async def stats(request: Request, version: Version) -> Response:
        name = request.path_params.get("name")
        models = catalogue.models.values() if name is None else [catalogue.find(name, version)]
        return reply({"model_stats": [model.stats.as_json(model.contract.name, VERSION) for model in models]})

    @router.get("/models/{name}/versions/{version}", summary="Inputs and outputs of one version")
    @router.get("/models/{name}", summary="Inputs and outputs of one model")
    async def model(name: str, version: Version) -> Response:
        return reply(model_metadata(catalogue.find(name, version)))

    return router


def infer_routes(service: Service, bodies: BodyReader, options: AppOptions) -> APIRouter:
    """Row 6. The body is taken from the raw stream: clients send no Content-Type."""
    catalogue = service.catalogue
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.post("/models/{name}/versions/{version}/infer", summary="Run one version")
    @router.post("/models/{name}/infer", summary="Run one model")
    async def infer(request: Request, name: str, version: Version) -> Response:
        check_client(request.headers.get(CLIENT_HEADER))
        catalogue.find(name, version)
        service.check(name)
        json_length = header_number(request.headers, JSON_LENGTH)
        body = await bodies.read(request.scope, request.receive, json_length)
        work = service.run(call_now(Verb.INFER, name, json_length, options.request_timeout), body)
        return ReplyInParts(await unless_gone(request.receive, work))

    return router

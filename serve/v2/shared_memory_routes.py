"""The protocol on HTTP: row 10, the regions of shared memory."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve.errors import BadRequestError, UnsupportedError
from serve.http.body import BodyReader
from serve.http.replies import reply
from serve.options import AppOptions
from serve.shared.regions import Regions
from serve.tensors.decode import parse_object
from serve.tensors.place import REMEDY

BODY_BYTES = 2**16


def shared_memory_routes(options: AppOptions) -> APIRouter:
    """Status, register and unregister. While shared memory is switched off, that is what they say."""
    regions = options.regions
    router = APIRouter(prefix="/v2/systemsharedmemory", tags=["Open Inference Protocol"])
    bodies = BodyReader(BODY_BYTES, pause=options.client_timeout, remedy="send what the protocol asks for")

    def switched_on() -> Regions:
        if regions is None:
            raise UnsupportedError(f"shared memory is switched off; {REMEDY}")
        return regions

    @router.get("/region/{name}/status", summary="One region of shared memory")
    @router.get("/status", summary="All regions of shared memory")
    async def status(request: Request) -> Response:
        return reply(switched_on().status(request.path_params.get("name")))

    @router.post("/region/{name}/register", summary="Give a name to shared memory")
    async def register(request: Request, name: str) -> Response:
        known = switched_on()
        document = parse_object(await bodies.read(request.scope, request.receive))
        for key in ("key", "byte_size"):
            if key not in document:
                raise BadRequestError(f"{key} is missing; send {{key, offset, byte_size}}")
        known.register(name, document["key"], document.get("offset", 0), document["byte_size"])
        return reply({})

    @router.post("/region/{name}/unregister", summary="Forget one region")
    @router.post("/unregister", summary="Forget all regions")
    async def unregister(request: Request) -> Response:
        switched_on().unregister(request.path_params.get("name"))
        return reply({})

    return router

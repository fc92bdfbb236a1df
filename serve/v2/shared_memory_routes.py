"""The protocol on HTTP: row 10, the regions of shared memory."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve.compute.service import Service, Verb, call_now
from serve.http.body import BodyReader
from serve.http.replies import ReplyInParts
from serve.options import AppOptions

BODY_BYTES = 2**16
NOTHING = memoryview(b"")


def shared_memory_routes(service: Service, options: AppOptions) -> APIRouter:
    """Status, register and unregister. While shared memory is switched off, that is what they say."""
    router = APIRouter(prefix="/v2/systemsharedmemory", tags=["Open Inference Protocol"])
    bodies = BodyReader(BODY_BYTES, pause=options.client_timeout, remedy="send what the protocol asks for")

    async def answer(verb: Verb, request: Request, body: memoryview = NOTHING) -> Response:
        return ReplyInParts(await service.run(call_now(verb, request.path_params.get("name")), body))

    @router.get("/region/{name}/status", summary="One region of shared memory")
    @router.get("/status", summary="All regions of shared memory")
    async def status(request: Request) -> Response:
        return await answer(Verb.REGION_STATUS, request)

    @router.post("/region/{name}/register", summary="Give a name to shared memory")
    async def register(request: Request) -> Response:
        return await answer(Verb.REGION_REGISTER, request, await bodies.read(request.scope, request.receive))

    @router.post("/region/{name}/unregister", summary="Forget one region")
    @router.post("/unregister", summary="Forget all regions")
    async def unregister(request: Request) -> Response:
        return await answer(Verb.REGION_UNREGISTER, request)

    return router

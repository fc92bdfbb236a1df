"""The protocol on HTTP: row 10 and the first of row 11, the regions of shared memory."""

from __future__ import annotations

from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from yolo_assigner.serve.compute.service import Service, Verb, call_now
from yolo_assigner.serve.http.body import BodyReader
from yolo_assigner.serve.http.replies import ReplyInParts
from yolo_assigner.serve.options import AppOptions

BODY_BYTES = 2**16
NOTHING = memoryview(b"")


class Verbs(NamedTuple):
    """What can be asked about one kind of shared memory, and how that is called."""

    name: str
    status: Verb
    register: Verb
    unregister: Verb


KINDS = {
    "system": Verbs("shared memory", Verb.REGION_STATUS, Verb.REGION_REGISTER, Verb.REGION_UNREGISTER),
    "cuda": Verbs("CUDA shared memory", Verb.CUDA_STATUS, Verb.CUDA_REGISTER, Verb.CUDA_UNREGISTER),
}


def shared_memory_routes(service: Service, options: AppOptions, kind: str) -> APIRouter:
    """Status, register and unregister. While shared memory is switched off, that is what they say.

    Args:
        service: What knows the regions.
        options: Limits.
        kind: A key of ``KINDS``.
    """
    verbs = KINDS[kind]
    router = APIRouter(prefix=f"/v2/{kind}sharedmemory", tags=["Open Inference Protocol"])
    bodies = BodyReader(BODY_BYTES, pause=options.client_timeout, remedy="send what the protocol asks for")

    async def answer(verb: Verb, request: Request, body: memoryview = NOTHING) -> Response:
        return ReplyInParts(await service.run(call_now(verb, request.path_params.get("name")), body))

    @router.get("/region/{name}/status", summary=f"One region of {verbs.name}")
    @router.get("/status", summary=f"All regions of {verbs.name}")
    async def status(request: Request) -> Response:
        return await answer(verbs.status, request)

    @router.post("/region/{name}/register", summary=f"Give a name to {verbs.name}")
    async def register(request: Request) -> Response:
        return await answer(verbs.register, request, await bodies.read(request.scope, request.receive))

    @router.post("/region/{name}/unregister", summary=f"Forget one region of {verbs.name}")
    @router.post("/unregister", summary=f"Forget all regions of {verbs.name}")
    async def unregister(request: Request) -> Response:
        return await answer(verbs.unregister, request)

    return router

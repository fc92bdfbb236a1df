"""The routes for people: typed JSON in and out."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from yolo_assigner.serve.http.body import BodyReader
from yolo_assigner.serve.http.disconnect import unless_disconnected
from yolo_assigner.serve.http.replies import ReplyInParts
from yolo_assigner.serve.inference.service import Operation, Service, new_call
from yolo_assigner.serve.options import AppOptions
from yolo_assigner.serve.v1.schemas import AssignReply, LossReply, ReduceReply


def add_people_routes(app: FastAPI, service: Service, bodies: BodyReader, options: AppOptions) -> None:
    """Add ``/v1/loss``, ``/v1/assign`` and ``/v1/reduce``.

    The bodies are read by hand and not by the framework: they are bounded, may be compressed, need no Content-Type,
    and are parsed where they do not hold up other callers.

    Args:
        app: Gets the routes and their OpenAPI page.
        service: What answers.
        bodies: Takes what is sent.
        options: Limits.
    """

    async def answer(request: Request, verb: Operation) -> Response:
        body = await bodies.read(request.scope, request.receive)
        work = service.run(new_call(verb, allowed=options.request_timeout), body)
        return ReplyInParts(await unless_disconnected(request.receive, work))

    @app.post("/v1/loss", summary="The detection loss of a batch", response_model=LossReply, tags=["For people"])
    async def loss(request: Request) -> Response:
        """Loss, its three terms, and the sums of each image, from raw predictions and boxes."""
        service.check()
        return await answer(request, Operation.LOSS)

    @app.post("/v1/assign", summary="Which anchors learn which box", response_model=AssignReply, tags=["For people"])
    async def assign(request: Request) -> Response:
        """The task-aligned assignment, from raw or decoded predictions and boxes."""
        service.check()
        return await answer(request, Operation.ASSIGN)

    @app.post(
        "/v1/reduce", summary="The loss of one batch over many workers", response_model=ReduceReply, tags=["For people"]
    )
    async def reduce(request: Request) -> Response:
        """Exactly the loss of one large batch, from the image sums of the workers that share it."""
        return await answer(request, Operation.REDUCE)

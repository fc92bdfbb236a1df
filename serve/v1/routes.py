"""The routes for people: typed JSON in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from serve.engine.registry import Registry
from serve.errors import BadRequestError, NotReadyError
from serve.http.body import BodyReader
from serve.http.gone import unless_gone
from serve.options import AppOptions
from serve.tensors.datatypes import Array
from serve.tensors.encode import dump_json
from serve.tensors.json_parts import check_parts
from serve.v1.reduce_reply import reduce_reply
from serve.v1.reply import LOSS_OUTPUTS, TARGETS, assign_reply, loss_reply
from serve.v1.request import Prepared, prepare
from serve.v1.schemas import AssignReply, AssignRequest, LossReply, LossRequest, ReduceReply, ReduceRequest, Strict

SHOWN = 60  # characters of a value in an error
TAGS = ("nested", "packed", "object", "row")  # of alternatives in the schemas, no names of anything in a request
AnyRequest = TypeVar("AnyRequest", bound=Strict)
Predictions = TypeVar("Predictions", bound=LossRequest)


def add_people_routes(app: FastAPI, registry: Registry, bodies: BodyReader, options: AppOptions) -> None:
    """Add ``/v1/loss``, ``/v1/assign`` and ``/v1/reduce``.

    The bodies are read by hand and not by the framework: they are bounded, may be compressed, need no Content-Type,
    and are parsed where they do not hold up other callers.

    Args:
        app: Gets the routes and their OpenAPI page.
        registry: All models.
        bodies: Takes what is sent.
        options: Limits.
    """

    async def computed(request: Request, job: Prepared, needed: tuple[str, ...]) -> dict[str, Array]:
        work = job.model.infer(job.inputs, _names(needed, job), options.deadline())
        return await unless_gone(request.receive, work)

    async def prepared(request: Request, kind: type[Predictions]) -> Prepared:
        if not registry.ready:
            raise NotReadyError("models are being loaded; try again in a moment")
        body = await bodies.read(request.scope, request.receive)
        return await asyncio.to_thread(lambda: prepare(registry, _parse(kind, body), options.max_work_bytes))

    @app.post("/v1/loss", summary="The detection loss of a batch", response_model=LossReply, tags=["For people"])
    async def loss(request: Request) -> Response:
        """Loss, its three terms, and the sums of each image, from raw predictions and boxes."""
        job = await prepared(request, LossRequest)
        outputs = await computed(request, job, LOSS_OUTPUTS)
        return await _reply(lambda: loss_reply(job, outputs))

    @app.post("/v1/assign", summary="Which anchors learn which box", response_model=AssignReply, tags=["For people"])
    async def assign(request: Request) -> Response:
        """The task-aligned assignment, from raw or decoded predictions and boxes."""
        job = await prepared(request, AssignRequest)
        outputs = await computed(request, job, TARGETS)
        return await _reply(lambda: assign_reply(job, outputs))

    @app.post(
        "/v1/reduce", summary="The loss of one batch over many workers", response_model=ReduceReply, tags=["For people"]
    )
    async def reduce(request: Request) -> Response:
        """Exactly the loss of one large batch, from the image sums of the workers that share it."""
        body = await bodies.read(request.scope, request.receive)
        return await _reply(lambda: reduce_reply(registry, _parse(ReduceRequest, body)))


def _parse(kind: type[AnyRequest], body: memoryview) -> AnyRequest:
    text = bytes(body)
    check_parts(text)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        where = ".".join(str(part) for part in first["loc"] if part not in TAGS)
        shown = repr(first["input"])
        useful = len(shown) <= SHOWN and first["type"] not in ("missing", "json_invalid")
        got = f", not {shown}" if useful else ""
        more = f" (and {len(others)} more)" if others else ""
        raise BadRequestError(
            f"{where or 'the body'}: {first['msg']}{got}{more}; the form is shown at /docs"
        ) from error


def _names(needed: tuple[str, ...], job: Prepared) -> list[str]:
    return list(dict.fromkeys((*needed, *job.outputs)))


async def _reply(make: Callable[[], dict[str, Any]]) -> Response:
    body = await asyncio.to_thread(lambda: dump_json(make()))
    return Response(body, media_type="application/json")

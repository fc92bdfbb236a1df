"""The typed JSON of ``/v1``: from the bytes of a request to those of its reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.loading import LoadedModels
from yolo_assigner.serve.inference.registry import check_loaded
from yolo_assigner.serve.inference.service import Call
from yolo_assigner.serve.v1.reply import LOSS_OUTPUTS, TARGETS, assign_reply, loss_reply, reduce_reply
from yolo_assigner.serve.v1.request import Prepared, prepare
from yolo_assigner.serve.v1.schemas import AssignRequest, LossRequest, ReduceRequest, Strict
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.json import check_parts
from yolo_assigner.serve.wire.response import EncodedResponse, dump_json

SHOWN = 60  # characters of a value in an error
TAGS = ("nested", "packed", "object", "row")  # of alternatives in the schemas, no names of anything in a request
AnyRequest = TypeVar("AnyRequest", bound=Strict)
OnBegun = Callable[[], None] | None


async def loss(
    registry: LoadedModels, call: Call, body: memoryview, max_work_bytes: int, on_begun: OnBegun = None
) -> EncodedResponse:
    """``/v1/loss``.

    Args:
        registry: All models.
        call: How long it may wait.
        body: JSON.
        max_work_bytes: Most memory that computing it may need.
        on_begun: Told when the engine begins with it.

    Raises:
        ServeError: The request is refused or failed; the text says why.
    """
    job = await asyncio.to_thread(lambda: _prepared(registry, LossRequest, body, max_work_bytes))
    outputs = await _computed(job, LOSS_OUTPUTS, call, on_begun)
    return await asyncio.to_thread(lambda: _encoded(loss_reply(job, outputs)))


async def assign(
    registry: LoadedModels, call: Call, body: memoryview, max_work_bytes: int, on_begun: OnBegun = None
) -> EncodedResponse:
    """``/v1/assign``; as :func:`loss`."""
    job = await asyncio.to_thread(lambda: _prepared(registry, AssignRequest, body, max_work_bytes))
    outputs = await _computed(job, TARGETS, call, on_begun)
    return await asyncio.to_thread(lambda: _encoded(assign_reply(job, outputs)))


def reduce(registry: LoadedModels, body: memoryview) -> EncodedResponse:
    """``/v1/reduce``, which needs no engine."""
    return _encoded(reduce_reply(registry, _parse(ReduceRequest, body)))


def _prepared(registry: LoadedModels, kind: type[LossRequest], body: memoryview, max_work_bytes: int) -> Prepared:
    check_loaded(registry)
    return prepare(registry, _parse(kind, body), max_work_bytes)


async def _computed(job: Prepared, needed: tuple[str, ...], call: Call, on_begun: OnBegun) -> dict[str, Array]:
    return await job.model.infer(job.inputs, list(dict.fromkeys((*needed, *job.outputs))), call.deadline(), on_begun)


def _encoded(document: dict[str, Any]) -> EncodedResponse:
    return EncodedResponse([dump_json(document)], None)


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

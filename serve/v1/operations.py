"""The operations of the v1 JSON API: from the bytes of a request to those of its response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import ValidationError

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.detection.grid import points_of
from yolo_assigner.serve.detection.results import reduce_sums
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.infer import OnBegun, PreparedRequest, answer, fit_inputs
from yolo_assigner.serve.inference.loading import LoadedModels
from yolo_assigner.serve.inference.registry import ModelInfo, ModelRegistry, check_loaded
from yolo_assigner.serve.inference.service import Call, Operation
from yolo_assigner.serve.v1.request import DetectionInputs, choose_model, read_inputs
from yolo_assigner.serve.v1.schemas import (
    AssignRequest,
    ExplainRequest,
    LossRequest,
    ReduceRequest,
    Strict,
    WorkerSums,
    WorkerSumsL1,
)
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.json import check_parts
from yolo_assigner.serve.wire.response import EncodedResponse, dump_json
from yolo_loss.explain.document import DOCUMENT_OUTPUTS, Subject, build_document

SHOWN = 60  # characters of a value in an error
TAGS = ("nested", "packed", "dfl_sums", "l1_sums", "row")  # pydantic's names of alternatives, which no request contains
LOSS_OUTPUTS = ("loss", "loss_items", "image_sums")
TARGETS = ("fg_mask", "target_gt_idx", "target_labels", "target_bboxes", "target_weights")
SCORES = "target_scores"
AnyRequest = TypeVar("AnyRequest", bound=Strict)


class Answered(NamedTuple):
    """A request that was computed.

    Attributes:
        contract: Contract of the model.
        request: The request.
        given: The inputs that it describes.
    """

    contract: Contract
    request: LossRequest
    given: DetectionInputs


async def detect(
    registry: LoadedModels, call: Call, body: memoryview, max_work_bytes: int, on_begun: OnBegun = None
) -> EncodedResponse:
    """Answer ``POST /v1/loss``, ``/v1/assign`` or ``/v1/explain``, as the call's operation says.

    Args:
        registry: All models.
        call: Names the operation, and says how long the request may wait.
        body: JSON.
        max_work_bytes: Most memory that computing the request may need.
        on_begun: Called in the engine's thread when computing begins.

    Raises:
        ServeError: The request was refused or failed; the text says why.
    """
    began = time.monotonic_ns()
    check_loaded(registry)
    endpoint = _ENDPOINTS[call.operation]
    request = await asyncio.to_thread(_parse, endpoint.schema, body)
    model = choose_model(registry, request)
    contract = model.contract

    def prepare() -> PreparedRequest:
        given = read_inputs(contract, request)
        outputs = tuple(dict.fromkeys((*endpoint.outputs, *given.outputs)))

        def encode(arrays: dict[str, Array]) -> EncodedResponse:
            tensors = {name: arrays[name].tolist() for name in given.outputs}
            reply = endpoint.reply(Answered(contract, request, given), arrays)
            return _encoded({"model": contract.name, **reply, "tensors": tensors})

        return PreparedRequest(fit_inputs(contract, given.arrays, max_work_bytes), outputs, outputs, encode)

    return await answer(model, call, lambda: asyncio.to_thread(prepare), on_begun, began)


def reduce(registry: ModelRegistry[ModelInfo], body: memoryview) -> EncodedResponse:
    """Answer ``POST /v1/reduce``, which needs no engine.

    Raises:
        NotFoundError: No model has that name, or none has gains.
        ModelFailedError: The model could not be loaded.
        BadRequestError: The body is not a request, the model has no gains, or no worker has an image.
    """
    request = _parse(ReduceRequest, body)
    contract = _loss_contract(registry, request.model)
    rows = [[_row(contract, sums) for sums in worker] for worker in request.workers]
    if not any(rows):
        raise BadRequestError("workers has no image; give the image_sums of one at least")
    reduced = reduce_sums([np.array(worker, np.float64) for worker in rows], contract.gains)
    return _encoded(
        {
            "model": contract.name,
            "loss": reduced.loss,
            "loss_items": dict(zip(contract.terms, reduced.loss_items.tolist(), strict=True)),
            "num_images": reduced.num_images,
            "gradient_scales": reduced.gradient_scales.tolist(),
        }
    )


def _loss_reply(answered: Answered, outputs: dict[str, Array]) -> dict[str, Any]:
    """The fields of a :class:`yolo_assigner.serve.v1.schemas.LossReply` that the outputs decide."""
    terms = answered.contract.terms
    sums = (*terms, SCORES)
    return {
        "loss": outputs["loss"].item(),
        "loss_items": dict(zip(terms, outputs["loss_items"].tolist(), strict=True)),
        "image_sums": [dict(zip(sums, row, strict=True)) for row in outputs["image_sums"].tolist()],
    }


def _assign_reply(answered: Answered, outputs: dict[str, Array]) -> dict[str, Any]:
    """The fields of a :class:`yolo_assigner.serve.v1.schemas.AssignReply` that the outputs decide."""
    given = answered.given
    points = points_of(given.level_sizes, given.strides)
    images = []
    for image, mask in enumerate(outputs["fg_mask"]):
        chosen = np.flatnonzero(mask)  # (P,)
        columns = {name: outputs[name][image, chosen] for name in TARGETS if name != "fg_mask"}
        images.append({"anchor_idx": chosen, "anchor_points": points[chosen], **columns})
    return {"imgsz": given.image_size, "num_anchors": len(points), "images": images}


def _explain_reply(answered: Answered, outputs: dict[str, Array]) -> dict[str, Any]:
    """The fields of a :class:`yolo_assigner.serve.v1.schemas.ExplainReply`, without those of all replies."""
    contract, request, given = answered
    labels = given.arrays["gt_labels"]
    image = np.array(request.batch.batch_idx, np.int64)
    subject = Subject(
        labels,
        given.arrays["gt_bboxes"],
        np.bincount(image, minlength=len(labels)),
        given.image_size,
        given.level_sizes,
        contract.hyperparameters,
        contract.name,
    )
    return build_document(outputs, subject, pairs=isinstance(request, ExplainRequest) and request.pairs)


class _Endpoint(NamedTuple):
    """The differences between the operations that need an engine.

    Attributes:
        schema: Form of the request.
        outputs: Outputs of the model that the reply is made from.
        reply: Makes the reply's fields from what was answered and these outputs.
    """

    schema: type[LossRequest]
    outputs: tuple[str, ...]
    reply: Callable[[Answered, dict[str, Array]], dict[str, Any]]


_ENDPOINTS: Mapping[Operation, _Endpoint] = {
    Operation.LOSS: _Endpoint(LossRequest, LOSS_OUTPUTS, _loss_reply),
    Operation.ASSIGN: _Endpoint(AssignRequest, TARGETS, _assign_reply),
    Operation.EXPLAIN: _Endpoint(ExplainRequest, DOCUMENT_OUTPUTS, _explain_reply),
}


def _encoded(document: dict[str, Any]) -> EncodedResponse:
    return EncodedResponse([dump_json(document)], None)


def _parse(schema: type[AnyRequest], body: memoryview) -> AnyRequest:
    text = bytes(body)
    check_parts(text)
    try:
        return schema.model_validate_json(text)
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


def _row(contract: Contract, sums: WorkerSums | WorkerSumsL1 | tuple[float, ...]) -> list[float]:
    if isinstance(sums, tuple):
        return list(sums)
    if isinstance(sums, WorkerSums):  # earlier releases answered so for every model
        return [sums.box, sums.cls, sums.dfl, sums.target_scores]
    if "l1" not in contract.terms:
        raise BadRequestError(
            f"workers has sums with l1, but the terms of model {contract.name!r} are {', '.join(contract.terms)}; name "
            "the model that gave them"
        )
    return [sums.box, sums.cls, sums.l1, sums.target_scores]


def _loss_contract(registry: ModelRegistry[ModelInfo], name: str | None) -> Contract:
    """Contract of the named model, or of the first one whose loss has gains."""
    if name is None:
        return registry.some("a loss", _has_sums)[0].contract
    contract = registry.find(name).contract
    if not _has_sums(contract):
        raise BadRequestError(f"model {name!r} is of kind {contract.kind} and has no gains; name one of a loss")
    return contract


def _has_sums(contract: Contract) -> bool:
    return any(spec.name == "image_sums" for spec in contract.outputs)

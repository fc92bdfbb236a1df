"""From a model's outputs to the typed JSON of ``/v1``."""

from __future__ import annotations

from typing import Any

import numpy as np

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.detection.grid import points_of
from yolo_assigner.serve.detection.results import reduce_sums
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.registry import ModelInfo, ModelRegistry
from yolo_assigner.serve.v1.request import Prepared
from yolo_assigner.serve.v1.schemas import ReduceRequest, WorkerSums
from yolo_assigner.serve.wire.dtypes import Array

LOSS_OUTPUTS = ("loss", "loss_items", "image_sums")
TARGETS = ("fg_mask", "target_gt_idx", "target_labels", "target_bboxes", "target_weights")
TERMS = ("box", "cls", "dfl", "target_scores")


def loss_reply(prepared: Prepared, outputs: dict[str, Array]) -> dict[str, Any]:
    """The body of :class:`yolo_assigner.serve.v1.schemas.LossReply`."""
    return {
        "model": prepared.model.contract.name,
        "loss": outputs["loss"].item(),
        "loss_items": dict(zip(TERMS, outputs["loss_items"].tolist(), strict=False)),
        "image_sums": [dict(zip(TERMS, row, strict=True)) for row in outputs["image_sums"].tolist()],
        "tensors": {name: outputs[name].tolist() for name in prepared.outputs},
    }


def assign_reply(prepared: Prepared, outputs: dict[str, Array]) -> dict[str, Any]:
    """The body of :class:`yolo_assigner.serve.v1.schemas.AssignReply`."""
    points = points_of(prepared.level_sizes, prepared.strides)
    images = []
    for image, mask in enumerate(outputs["fg_mask"]):
        chosen = np.flatnonzero(mask)  # (P,)
        columns = {name: outputs[name][image, chosen] for name in TARGETS if name != "fg_mask"}
        images.append({"anchor_idx": chosen, "anchor_points": points[chosen], **columns})
    return {
        "model": prepared.model.contract.name,
        "imgsz": prepared.image_size,
        "num_anchors": len(points),
        "images": images,
        "tensors": {name: outputs[name].tolist() for name in prepared.outputs},
    }


def reduce_reply(registry: ModelRegistry[ModelInfo], request: ReduceRequest) -> dict[str, Any]:
    """The body of :class:`yolo_assigner.serve.v1.schemas.ReduceReply`.

    Raises:
        NotFoundError: There is no such model, or none that has gains.
        ModelFailedError: It cannot be loaded.
        BadRequestError: The model has no gains, or no worker has an image.
    """
    contract = _contract(registry, request.model)
    rows = [[_row(sums) for sums in worker] for worker in request.workers]
    if not any(rows):
        raise BadRequestError("workers has no image; give the image_sums of one at least")
    reduced = reduce_sums([np.array(worker, np.float64) for worker in rows], contract.gains)
    return {
        "model": contract.name,
        "loss": reduced.loss,
        "loss_items": dict(zip(TERMS, reduced.loss_items.tolist(), strict=False)),
        "num_images": reduced.num_images,
        "gradient_scales": reduced.gradient_scales.tolist(),
    }


def _row(sums: WorkerSums | tuple[float, ...]) -> list[float]:
    return [getattr(sums, term) for term in TERMS] if isinstance(sums, WorkerSums) else list(sums)


def _contract(registry: ModelRegistry[ModelInfo], name: str | None) -> Contract:
    if name is None:
        return registry.some("a loss", _has_sums)[0].contract
    contract = registry.find(name).contract
    if not _has_sums(contract):
        raise BadRequestError(f"model {name!r} is of kind {contract.kind} and has no gains; name one of a loss")
    return contract


def _has_sums(contract: Contract) -> bool:
    return any(spec.name == "image_sums" for spec in contract.outputs)

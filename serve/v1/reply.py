"""From a model's outputs to the typed JSON of ``/v1``."""

from __future__ import annotations

from typing import Any

import numpy as np

from yolo_assigner.serve.tensors.datatypes import Array
from yolo_assigner.serve.tensors.grid import points_of
from yolo_assigner.serve.v1.request import Prepared

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

"""From the ragged batch of a YOLO data loader to padded ground truth.

The numpy twin of ``yolo_loss.collate``: the server and the client load no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from yolo_assigner.serve.detection.results import Array, GroundTruth
from yolo_loss.checks import (
    as_array,
    check_class_weight_values,
    check_class_weights,
    check_columns,
    check_region_values,
    check_regions,
    check_values,
    region_columns,
)


def pad_ground_truth(
    batch_idx: Any,
    cls: Any,
    bboxes: Any,
    batch_size: int,
    image_size: tuple[int, int],
    num_classes: int | None = None,
) -> GroundTruth:
    """Pad the boxes of each image to the largest count in the batch, keeping their order.

    Args:
        batch_idx: (T,) or (T, 1), image of each box, in [0, B).
        cls: (T,) or (T, 1), class of each box; whole numbers, also of a float type.
        bboxes: (T, 4) centre x, centre y, width, height, normalised to [0, 1] by the image size.
        batch_size: B.
        image_size: (height, width) in pixels.
        num_classes: C; None: classes have no upper bound.

    Returns:
        Padded ground truth with M the largest count, 0 when T = 0. Padding is zeros; a slot is valid when the sum of
        its pixel coordinates is above 0.

    Raises:
        ValueError: Shapes or types are wrong, an image or a class does not exist, or a box is not finite or in pixels.
            The text says which.
    """
    image, labels = as_array("batch_idx", batch_idx), as_array("cls", cls)
    fractions = as_array("bboxes", bboxes, np.float32)
    check_columns(image, labels, fractions)
    check_values(image, labels, fractions, batch_size, num_classes)
    image, labels = (column.reshape(-1).astype(np.int64) for column in (image, labels))
    boxes = _corners(fractions.reshape(-1, 4).astype(np.float32), image_size)
    counts = np.bincount(image, minlength=batch_size)  # (B,)
    slots = int(counts.max(initial=0))
    order = np.argsort(image, kind="stable")
    image = image[order]
    rank = np.arange(len(image)) - (counts.cumsum() - counts)[image]  # (T,) slot in its image

    gt_labels = np.zeros((batch_size, slots, 1), np.int64)
    gt_bboxes = np.zeros((batch_size, slots, 4), np.float32)
    gt_labels[image, rank, 0] = labels[order]
    gt_bboxes[image, rank] = boxes[order]
    return GroundTruth(gt_labels, gt_bboxes, gt_bboxes.sum(axis=-1, keepdims=True) > 0)


def class_inputs(
    batch: Mapping[str, Any], images: int, image_size: tuple[int, int], num_classes: int | None = None
) -> dict[str, Array]:
    """Make the inputs ``class_weights`` and ``ignore_bboxes`` with ``mask_ignore`` from a batch that has them.

    Args:
        batch: With or without ``class_weights`` (C,) or (B, C), ``ignore_idx`` (K,) and ``ignore_bboxes`` (K, 4),
            normalised centre x, centre y, width, height.
        images: B.
        image_size: (height, width) in pixels.
        num_classes: C; None: as many as the class weights.

    Returns:
        The inputs by name, (B, C), (B, I, 4) and (B, I, 1); those that the batch lacks are missing.

    Raises:
        ValueError: Shapes, types or values are wrong. The text says which.
    """
    inputs: dict[str, Array] = {}
    if "class_weights" in batch and batch["class_weights"] is not None:
        weights = as_array("class_weights", batch["class_weights"], np.float32)
        classes = num_classes if num_classes is not None else weights.shape[-1] if weights.ndim else 1
        check_class_weights(weights, images, classes)
        check_class_weight_values(weights)
        inputs["class_weights"] = np.ascontiguousarray(np.broadcast_to(weights, (images, classes)), np.float32)
    columns = region_columns(batch)
    if columns is not None:
        index = as_array("ignore_idx", columns["ignore_idx"])
        boxes = as_array("ignore_bboxes", columns["ignore_bboxes"], np.float32)
        check_regions(index, boxes)
        check_region_values(index, boxes, images)
        padded = pad_ground_truth(index, np.zeros(index.shape, np.int64), boxes, images, image_size)
        inputs |= {"ignore_bboxes": padded.gt_bboxes, "mask_ignore": padded.mask_gt}
    return inputs


def _corners(fractions: Array, image_size: tuple[int, int]) -> Array:
    """Convert normalised centres and sizes to pixel xyxy, (T, 4) float32."""
    height, width = image_size
    centre, size = np.split(fractions * np.array((width, height, width, height), np.float32), 2, axis=1)
    return np.concatenate((centre - size / 2, centre + size / 2), axis=1)

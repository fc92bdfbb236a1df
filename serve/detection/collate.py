"""From the ragged batch of a YOLO data loader to padded ground truth, in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from yolo_assigner.serve.detection.results import Array, GroundTruth
from yolo_loss.checks import as_array, batch_columns, check_columns, check_values


def pad_ground_truth(
    batch_idx: Any,
    cls: Any,
    bboxes: Any,
    batch_size: int,
    image_size: tuple[int, int],
    num_classes: int | None = None,
) -> GroundTruth:
    """Pad to the largest count in the batch, keeping the order of arrival inside each image.

    Args:
        batch_idx: (T,) or (T, 1), image of each box, in [0, B).
        cls: (T,) or (T, 1), class of each box; whole numbers, of a float type too.
        bboxes: (T, 4) centre x, centre y, width, height, normalised to [0, 1] by the image size.
        batch_size: B.
        image_size: (height, width) in pixels.
        num_classes: C; None when it is not known here.

    Returns:
        Padded ground truth, M = the largest count, 0 when T = 0. Padding is zeros; a slot is valid when the sum of its
        pixel coordinates is above 0.

    Raises:
        ValueError: Shapes or types are wrong, an image or a class does not exist, or a box is not finite or in pixels.
            The text says which.
    """
    image, labels, fractions = ragged_arrays({"batch_idx": batch_idx, "cls": cls, "bboxes": bboxes})
    check_values(image, labels, fractions, batch_size, num_classes)
    image, labels = (column.reshape(-1).astype(np.int64) for column in (image, labels))
    boxes = _corners(fractions.reshape(-1, 4).astype(np.float32), image_size)
    counts = np.bincount(image, minlength=batch_size)  # (B,)
    slots = int(counts.max(initial=0))
    order = np.argsort(image, kind="stable")
    image = image[order]
    rank = np.arange(len(image)) - (counts.cumsum() - counts)[image]  # (T,) place in its image

    gt_labels = np.zeros((batch_size, slots, 1), np.int64)
    gt_bboxes = np.zeros((batch_size, slots, 4), np.float32)
    gt_labels[image, rank, 0] = labels[order]
    gt_bboxes[image, rank] = boxes[order]
    return GroundTruth(gt_labels, gt_bboxes, gt_bboxes.sum(axis=-1, keepdims=True) > 0)


def ragged_arrays(batch: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    """The three ragged columns as arrays whose shapes and types belong together.

    Args:
        batch: ``batch_idx`` (T,) or (T, 1), ``cls`` (T,) or (T, 1), ``bboxes`` (T, 4): arrays, tensors or lists.

    Raises:
        ValueError: A column is missing, or they do not belong together.
    """
    columns = batch_columns(batch)
    batch_idx, cls = (as_array(name, columns[name]) for name in ("batch_idx", "cls"))
    bboxes = as_array("bboxes", columns["bboxes"], np.float32)
    check_columns(batch_idx, cls, bboxes)
    return batch_idx, cls, bboxes


def _corners(fractions: Array, image_size: tuple[int, int]) -> Array:
    """Pixel xyxy, (T, 4) float32."""
    height, width = image_size
    centre, size = np.split(fractions * np.array((width, height, width, height), np.float32), 2, axis=1)
    return np.concatenate((centre - size / 2, centre + size / 2), axis=1)

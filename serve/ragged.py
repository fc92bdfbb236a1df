"""From the ragged batch of a YOLO data loader to padded ground truth, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from serve.results import Array, GroundTruth


def pad_ground_truth(
    batch_idx: ArrayLike,
    cls: ArrayLike,
    bboxes: ArrayLike,
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
        ValueError: The lengths differ, a box is not finite, or an index or class does not exist. The text says which.
    """
    image = _indices("batch_idx", batch_idx, batch_size, f"the predictions are of {batch_size} images")
    labels = _indices("cls", cls, num_classes, f"the model has {num_classes} classes")
    boxes = _boxes(bboxes, len(image), image_size)
    if len(labels) != len(image):
        raise ValueError(f"cls has {len(labels)} entries, batch_idx has {len(image)}; give one of each for every box")
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


def _indices(name: str, values: ArrayLike, end: int | None, reason: str) -> Array:
    """Whole numbers in [0, end), (T,) int64."""
    array = np.asarray(values)
    if array.shape[1:] == (1,):
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; give (T,), one entry for every box")
    if not array.size:
        return np.zeros(0, np.int64)
    wrong = ~((array >= 0) & (array == np.trunc(array)) & (array < (2**31 if end is None else end)))
    if wrong.any():
        place = int(np.argmax(wrong))
        hint = f" and below {end}: {reason}" if end is not None else ""
        raise ValueError(f"{name}[{place}] is {array[place]}; it must be a whole number, 0 or more{hint}")
    return array.astype(np.int64)


def _boxes(bboxes: ArrayLike, count: int, image_size: tuple[int, int]) -> Array:
    """Pixel xyxy, (T, 4) float32."""
    array = np.asarray(bboxes, np.float32)
    if array.size == 0 and count == 0:
        return np.zeros((0, 4), np.float32)
    if array.shape != (count, 4):
        raise ValueError(
            f"bboxes has shape {array.shape}, batch_idx has {count} entries; give ({count}, 4): "
            "centre x, centre y, width, height, normalised by the image size"
        )
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        place = int(np.argmin(finite))
        raise ValueError(f"bboxes[{place}] is {array[place].tolist()}; all four numbers must be finite")
    height, width = image_size
    centre, size = np.split(array * np.array((width, height, width, height), np.float32), 2, axis=1)
    return np.concatenate((centre - size / 2, centre + size / 2), axis=1)

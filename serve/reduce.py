"""The loss of one large batch from the sums of its images, whichever workers computed them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from yolo_assigner.serve.results import Array

NUM_SUMS = 4  # box, cls, dfl, target scores


class Reduced(NamedTuple):
    """The loss of all images together.

    Attributes:
        loss: Sum of the terms times the number of images.
        loss_items: (3,) box, cls, dfl with their gains, before times the number of images.
        num_images: Of all workers.
        gradient_scales: (W,) what turns the gradients of each worker's own loss into those of this one.
    """

    loss: float
    loss_items: Array
    num_images: int
    gradient_scales: Array


def reduce_sums(workers: Sequence[Array], gains: Sequence[float]) -> Reduced:
    """Add up and divide once.

    A worker's own loss is its images' sums over its own target scores S_w, times its B_w images; the loss of all is
    over all target scores S, times all B images. So gradients of the former times (B / S) / (B_w / S_w) are those of
    the latter. Target scores carry no gradient.

    Args:
        workers: (B_w, 4) box, cls, dfl and target-score sums of each worker's images; B_w may be 0.
        gains: Weights of the three terms.

    Returns:
        Computed in float64. A worker without images has scale 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float64 comes out as an infinity or NaN
        sums = [np.asarray(rows, np.float64).reshape(-1, NUM_SUMS) for rows in workers]
        total = np.concatenate([np.zeros((0, NUM_SUMS)), *sums]).sum(axis=0)
        images = sum(len(rows) for rows in sums)
        items = total[:3] / max(total[3], 1.0) * np.asarray(gains, np.float64)
        factor = images / max(total[3], 1.0)
        scales = [factor * max(rows[:, 3].sum(), 1.0) / len(rows) if len(rows) else 0.0 for rows in sums]
    return Reduced(float(items.sum() * images), items, images, np.array(scales, np.float64))

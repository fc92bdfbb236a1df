"""The loss in plain loops, float64, beside ``tests.oracle``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import oracle

Array = NDArray[Any]


def grid(maps: list[Array], strides: tuple[float, ...]) -> tuple[Array, Array]:
    """Anchor points (A, 2) in grid units and strides (A,)."""
    points, scales = [], []
    for level, stride in zip(maps, strides, strict=True):
        for y in range(level.shape[2]):
            for x in range(level.shape[3]):
                points.append((x + 0.5, y + 0.5))
                scales.append(stride)
    return np.array(points), np.array(scales)


def joined(maps: list[Array]) -> Array:
    """(B, A, channels) from the maps."""
    return np.concatenate([level.reshape(*level.shape[:2], -1).transpose(0, 2, 1) for level in maps], axis=1)


def log_softmax(logits: Array) -> Array:
    """Of one vector."""
    top = logits.max()
    normalised: Array = logits - top - math.log(sum(math.exp(v - top) for v in logits))
    return normalised


def decode(raw: Array, point: Array, reg_max: int) -> Array:
    """One anchor's box, grid units."""
    if reg_max == 1:
        left, top, right, bottom = raw[:4]
    else:
        left, top, right, bottom = (
            sum(r * math.exp(p) for r, p in enumerate(log_softmax(raw[side * reg_max : (side + 1) * reg_max])))
            for side in range(4)
        )
    return np.array((point[0] - left, point[1] - top, point[0] + right, point[1] + bottom))


def loss(
    maps: list[Array],
    gt_labels: Array,
    gt_boxes: Array,
    mask: Array,
    *,
    strides: tuple[float, ...],
    num_classes: int,
    reg_max: int = 16,
    gains: tuple[float, ...] = (7.5, 0.5, 1.5),
    class_loss: str = "bce",
    class_weights: Array | None = None,
    ignore_bboxes: Array | None = None,
    mask_ignore: Array | None = None,
    **assigner: Any,
) -> tuple[float, list[float], Array]:
    """Loss, the three items, and the sums of each image (B, 4).

    ``class_weights`` are (B, C), ``ignore_bboxes`` (B, I, 4) pixels with ``mask_ignore`` (B, I, 1).
    """
    raw = joined(maps).astype(np.float64)
    points, scales = grid(maps, strides)
    boxes = np.array([[decode(row, p, reg_max) for row, p in zip(image, points, strict=True)] for image in raw])
    probabilities = 1 / (1 + np.exp(-raw[..., 4 * reg_max :]))
    targets = oracle.assign(
        probabilities, boxes * scales[:, None], points * scales[:, None], gt_labels, gt_boxes, mask, **assigner
    )
    sums = np.zeros((len(raw), 4))
    for b in range(len(raw)):
        for a in range(len(points)):
            ignored = not targets.fg_mask[b, a] and lies_in_a_region(
                points[a] * scales[a], b, ignore_bboxes, mask_ignore, assigner.get("eps", 1e-9)
            )
            for c in range(num_classes):
                factor = 1.0 if class_weights is None else float(class_weights[b, c])
                if ignored or factor == 0:
                    continue
                positive = bool(targets.fg_mask[b, a]) and targets.target_labels[b, a] == c
                sums[b, 1] += factor * class_element(
                    raw[b, a, 4 * reg_max + c], targets.target_scores[b, a, c], positive, class_loss
                )
            if not targets.fg_mask[b, a]:
                continue
            weight = targets.target_scores[b, a].sum()
            target = targets.target_bboxes[b, a] / scales[a]
            sums[b, 0] += (1 - oracle.ciou(boxes[b, a], target)) * weight
            if reg_max == 1:
                image = (maps[0].shape[3] * strides[0], maps[0].shape[2] * strides[0])
                sums[b, 2] += distances_apart(boxes[b, a], target, float(scales[a]), image) * weight
            else:
                sums[b, 2] += distribution(raw[b, a], target, points[a], reg_max) * weight
            sums[b, 3] += weight
    normaliser = max(sums[:, 3].sum(), 1)
    items = [float(gain * sums[:, i].sum() / normaliser) for i, gain in enumerate(gains)]
    return sum(items) * len(raw), items, sums


def lies_in_a_region(point: Array, image: int, boxes: Array | None, mask: Array | None, eps: float) -> bool:
    """Whether a point in pixels lies inside one of the image's regions to ignore."""
    if boxes is None or mask is None:
        return False
    return any(
        bool(valid[0]) and oracle.inside(point, box, eps) for box, valid in zip(boxes[image], mask[image], strict=True)
    )


def class_element(logit: float, target: float, positive: bool, kind: str) -> float:
    """One element of the class term."""
    p = 1 / (1 + math.exp(-logit))
    cross_entropy = -(target * math.log(p) + (1 - target) * math.log(1 - p))
    if kind == "varifocal":
        return cross_entropy * (target if positive else 0.75 * p * p)
    return cross_entropy


def distances_apart(box: Array, target: Array, stride: float, image: tuple[float, float]) -> float:
    """One anchor's L1 term: how far the four sides lie apart, as fractions of the image's width and height."""
    width, height = image
    x1, y1, x2, y2 = (abs(float(one - other)) * stride for one, other in zip(box, target, strict=True))
    return (x1 / width + y1 / height + x2 / width + y2 / height) / 4


def distribution(raw: Array, target: Array, point: Array, reg_max: int) -> float:
    """One anchor's distribution focal loss."""
    distances = (point[0] - target[0], point[1] - target[1], target[2] - point[0], target[3] - point[1])
    total = 0.0
    for side, distance in enumerate(distances):
        d = min(max(distance, 0.0), reg_max - 1 - 0.01)
        low = math.floor(d)
        log_p = log_softmax(raw[side * reg_max : (side + 1) * reg_max])
        total -= log_p[low] * (low + 1 - d) + log_p[low + 1] * (d - low)
    return total / 4

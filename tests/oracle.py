"""The specification in plain loops over images, boxes and anchors: slow, and meant to be read.

Written from the formulae, sharing nothing with the package. ``real`` is the number type to compute in, so that the
same steps can be rounded as float32 or as float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Targets(NamedTuple):
    """The assigner's outputs and the soft score of each anchor."""

    target_labels: Array
    target_bboxes: Array
    target_scores: Array
    fg_mask: Array
    target_gt_idx: Array
    target_weights: Array


def ciou(box1: Array, box2: Array, real: type = np.float64) -> Any:
    """Complete IoU of two boxes."""
    eps = real(1e-7)
    x11, y11, x12, y12 = (real(v) for v in box1)
    x21, y21, x22, y22 = (real(v) for v in box2)
    w1, h1 = x12 - x11, y12 - y11 + eps
    w2, h2 = x22 - x21, y22 - y21 + eps
    inter = max(real(0), min(x12, x22) - max(x11, x21)) * max(real(0), min(y12, y22) - max(y11, y21))
    union = w1 * h1 + w2 * h2 - inter + eps
    iou = inter / union
    cw, ch = max(x12, x22) - min(x11, x21), max(y12, y22) - min(y11, y21)
    c2 = cw * cw + ch * ch + eps
    dx, dy = x21 + x22 - x11 - x12, y21 + y22 - y11 - y12
    rho2 = (dx * dx + dy * dy) / real(4)
    d_angle = np.arctan(w2 / h2) - np.arctan(w1 / h1)
    v = real(4 / math.pi**2) * (d_angle * d_angle)
    a = v / (real(1) - iou + v + eps)
    return iou - (rho2 / c2 + v * a)


def assign(
    scores: Array,
    boxes: Array,
    points: Array,
    gt_labels: Array,
    gt_boxes: Array,
    mask: Array,
    *,
    topk: int,
    alpha: float,
    beta: float,
    eps: float = 1e-9,
    min_box_side: float | None = None,
    topk2: int | None = None,
    real: type = np.float64,
) -> Targets:
    """Assign image by image."""
    images, anchors, classes = scores.shape
    slots = gt_boxes.shape[1]
    labels = np.full((images, anchors), classes if slots == 0 else 0, dtype=np.int64)
    target_boxes: Array = np.zeros((images, anchors, 4), dtype=real)
    owner = np.zeros((images, anchors), dtype=np.int64)
    foreground = np.zeros((images, anchors), dtype=bool)
    weights: Array = np.zeros((images, anchors), dtype=real)
    for b in range(images):
        won, t, u = _match(
            scores[b], boxes[b], points, gt_labels[b], gt_boxes[b], mask[b], topk, alpha, beta, eps, min_box_side, real
        )
        if topk2 is not None:
            won = [_best({a: t[m][a] for a in mine}, topk2) for m, mine in enumerate(won)]
        for m, mine in enumerate(won):
            max_t = max((t[m][a] for a in mine), default=real(0))
            max_u = max((u[m][a] for a in mine), default=real(0))
            for a in mine:
                foreground[b, a], owner[b, a] = True, m
                weights[b, a] = t[m][a] * max_u / (max_t + real(eps))
        if slots:
            for a in range(anchors):
                labels[b, a] = max(int(gt_labels[b, owner[b, a], 0]), 0)
                target_boxes[b, a] = gt_boxes[b, owner[b, a]]
    dense: Array = np.zeros((images, anchors, classes), dtype=real)
    for b, a in zip(*np.nonzero(foreground), strict=True):
        dense[b, a, labels[b, a]] = weights[b, a]
    return Targets(labels, target_boxes, dense, foreground, owner, weights)


def _match(
    scores: Array,
    boxes: Array,
    points: Array,
    gt_labels: Array,
    gt_boxes: Array,
    mask: Array,
    topk: int,
    alpha: float,
    beta: float,
    eps: float,
    min_box_side: float | None,
    real: type,
) -> tuple[list[list[int]], list[dict[int, Any]], list[dict[int, Any]]]:
    """Steps 1 to 4 for one image: the anchors each ground truth won, its metrics and overlaps by anchor."""
    t: list[dict[int, Any]] = []
    u: list[dict[int, Any]] = []
    chosen: list[list[int]] = []
    for m in range(len(gt_boxes)):
        t.append({})
        u.append({})
        for a in range(len(points)):
            if not mask[m, 0] or not _inside(points[a], gt_boxes[m], eps, min_box_side, real):
                continue
            overlap = max(ciou(gt_boxes[m], boxes[a], real), real(0))
            score = real(scores[a, max(int(gt_labels[m, 0]), 0)])
            u[m][a] = overlap
            t[m][a] = real(score ** real(alpha)) * real(overlap ** real(beta))
        chosen.append(_best(t[m], topk))
    won: list[list[int]] = [[] for _ in chosen]
    for a in range(len(points)):
        choosers = [m for m in range(len(chosen)) if a in chosen[m]]
        if len(choosers) == 1:
            won[choosers[0]].append(a)
        elif len(choosers) > 1:
            having = [m for m in range(len(chosen)) if a in u[m]]
            won[max(having, key=lambda m: (u[m][a], -m))].append(a)
    return won, t, u


def _inside(point: Array, box: Array, eps: float, min_box_side: float | None, real: type) -> bool:
    x, y = (real(v) for v in point)
    x1, y1, x2, y2 = (real(v) for v in box)
    if min_box_side is not None:
        half = real(min_box_side / 2)
        if x2 - x1 < min_box_side:
            centre = (x1 + x2) / real(2)
            x1, x2 = centre - half, centre + half
        if y2 - y1 < min_box_side:
            centre = (y1 + y2) / real(2)
            y1, y2 = centre - half, centre + half
    return bool(min(x - x1, y - y1, x2 - x, y2 - y) > real(eps))


def inside(point: Array, box: Array, eps: float) -> bool:
    """Whether a point lies inside a box that is not enlarged."""
    return _inside(point, box, eps, None, np.float64)


def _best(metric: dict[int, Any], k: int) -> list[int]:
    """Anchors of the k largest metrics above 0; among equal ones the smaller index first."""
    ranked = sorted((a for a in metric if metric[a] > 0), key=lambda a: (-metric[a], a))
    return sorted(ranked[:k])

"""The two kernels of ``yolo_loss.assignment.triton``; they need the package ``triton``.

Arguments of both, pointers unless said otherwise. G is a ground truth's index b * M + m.

* ``points`` (2, A), ``boxes`` (6, B, A) and ``truth_boxes`` (6, B, M) with the fields of ``BoxGeometry``, ``areas``
  (4, B, M) with the sides of the candidate areas, ``labels`` and ``valid`` (B, M).
* ``s0`` to ``s2``: class scores of three levels (B, C, A_i); ``t0`` to ``t8``: the strides of their axes (numbers).
* ``times_chosen`` (B, A): how many ground truths chose an anchor; ``chosen_by`` (B, A): one of their slots.
* Numbers: ``slots`` M, ``anchors`` A, ``all_anchors`` B * A, ``all_slots`` B * M, ``end0`` and ``end1`` where the
  first two levels end, ``eps``; compiled in: the exponents, whether scores are ``logits``, and anchors per ``block``.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Larger than every anchor's index.
NO_INDEX = tl.constexpr(2**30)


@triton.jit
def select_topk(
    points, boxes, truth_boxes, areas, labels, valid, s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8,
    times_chosen, chosen_by, slots, anchors, all_anchors, all_slots, end0, end1, eps,
    k: tl.constexpr, table_size: tl.constexpr, alpha: tl.constexpr, beta: tl.constexpr, logits: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Choose a ground truth's k anchors of largest metric above 0; among equal ones the smaller index.

    Adds 1 to ``times_chosen`` at each, and writes the slot into ``chosen_by``. One program per ground truth;
    ``table_size`` is k rounded up to a power of two.
    """
    g = tl.program_id(0)
    b = g // slots
    if tl.load(valid + g):
        entry = tl.arange(0, table_size)
        # The k best metrics so far, 0 where there is none; entries from k on are never the smallest.
        best = tl.where(entry < k, 0.0, float("inf"))
        best_anchor = -1 - entry
        for begin in range(0, anchors, block):
            a = begin + tl.arange(0, block)
            inside = is_inside(points, areas, anchors, all_slots, a, g, eps, a < anchors)
            if tl.max(inside.to(tl.int32), 0) > 0:
                iou = ciou_at(boxes, all_anchors, b * anchors + a, truth_boxes, all_slots, g, inside, False)
                score = score_of(
                    s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8, b, tl.load(labels + g), a, end0, end1, inside
                )
                metric = metric_of(score, iou, inside, alpha, beta, logits)
                largest, smallest = tl.max(metric, 0), tl.min(best, 0)
                while largest > smallest:
                    at = tl.min(tl.where(metric == largest, a, NO_INDEX), 0)
                    # Among equal entries the largest index is replaced.
                    replaced = tl.max(tl.where(best == smallest, best_anchor, -NO_INDEX), 0)
                    here = (best == smallest) & (best_anchor == replaced)
                    best = tl.where(here, largest, best)
                    best_anchor = tl.where(here, at, best_anchor)
                    metric = tl.where(a == at, 0.0, metric)
                    largest, smallest = tl.max(metric, 0), tl.min(best, 0)
        chosen = best_anchor >= 0
        tl.atomic_add(times_chosen + b * anchors + best_anchor, 1, chosen)
        # Of several writers the last one stays; the value is read only where there was one.
        tl.store(chosen_by + b * anchors + best_anchor, g - b * slots, chosen)


@triton.jit
def resolve_conflicts(
    points, boxes, truth_boxes, areas, labels, valid, s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8,
    times_chosen, chosen_by, gt_idx, anchor_metric, max_metric, max_iou,
    slots, anchors, all_anchors, all_slots, end0, end1, eps,
    alpha: tl.constexpr, beta: tl.constexpr, logits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Assign an anchor chosen by several to the largest IoU among all whose candidate it is; ties: smallest slot.

    Writes each anchor's slot ``gt_idx`` (B, A) and metric ``anchor_metric`` (B, A), and the largest metric and IoU of
    each ground truth's anchors, ``max_metric`` and ``max_iou`` (B, M). One program per image and block of anchors.
    """
    b = tl.program_id(1)
    a = tl.program_id(0) * block + tl.arange(0, block)
    here = b * anchors + a
    times = tl.load(times_chosen + here, a < anchors, 0)
    contested = times > 1
    slot = tl.load(chosen_by + here, times == 1, 0)
    if tl.max(contested.to(tl.int32), 0) > 0:
        largest = tl.zeros([block], tl.float32) - 1.0
        for m in range(0, slots):
            g = b * slots + m
            if tl.load(valid + g):
                inside = is_inside(points, areas, anchors, all_slots, a, g, eps, contested)
                if tl.max(inside.to(tl.int32), 0) > 0:
                    iou = ciou_at(boxes, all_anchors, here, truth_boxes, all_slots, g, inside, False)
                    better = inside & (iou > largest)
                    largest = tl.where(better, iou, largest)
                    slot = tl.where(better, m, slot)
    foreground = times > 0
    g = b * slots + slot
    iou = ciou_at(boxes, all_anchors, here, truth_boxes, all_slots, g, foreground, True)
    score = score_of(
        s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8, b, tl.load(labels + g, foreground, 0), a, end0, end1, foreground
    )
    metric = metric_of(score, iou, foreground, alpha, beta, logits)
    tl.store(gt_idx + here, slot, a < anchors)
    tl.store(anchor_metric + here, metric, a < anchors)
    tl.atomic_max(max_metric + g, metric, foreground)
    tl.atomic_max(max_iou + g, iou, foreground)


@triton.jit
def is_inside(points, areas, anchors, all_slots, a, g, eps, mask):
    """Whether the anchor's point lies in the box's candidate area; false outside the mask."""
    px, py = tl.load(points + a, mask, 0.0), tl.load(points + anchors + a, mask, 0.0)
    x1, y1 = tl.load(areas + g), tl.load(areas + all_slots + g)
    x2, y2 = tl.load(areas + 2 * all_slots + g), tl.load(areas + 3 * all_slots + g)
    nearest = tl.minimum(tl.minimum(px - x1, x2 - px), tl.minimum(py - y1, y2 - py))
    return mask & (nearest > eps)


@triton.jit
def ciou_at(boxes, all_anchors, index, truth_boxes, all_slots, g, mask, per_anchor: tl.constexpr):
    """CIoU of anchors with one ground truth, or with ``per_anchor`` of each anchor with its own."""
    truth_mask = mask if per_anchor else None
    other = 0.0 if per_anchor else None
    return ciou_of(
        tl.load(truth_boxes + g, truth_mask, other),
        tl.load(truth_boxes + all_slots + g, truth_mask, other),
        tl.load(truth_boxes + 2 * all_slots + g, truth_mask, other),
        tl.load(truth_boxes + 3 * all_slots + g, truth_mask, other),
        tl.load(truth_boxes + 4 * all_slots + g, truth_mask, other),
        tl.load(truth_boxes + 5 * all_slots + g, truth_mask, other),
        tl.load(boxes + index, mask, 0.0),
        tl.load(boxes + all_anchors + index, mask, 0.0),
        tl.load(boxes + 2 * all_anchors + index, mask, 0.0),
        tl.load(boxes + 3 * all_anchors + index, mask, 0.0),
        tl.load(boxes + 4 * all_anchors + index, mask, 0.0),
        tl.load(boxes + 5 * all_anchors + index, mask, 0.0),
    )


@triton.jit
def ciou_of(gx1, gy1, gx2, gy2, garea, gangle, px1, py1, px2, py2, parea, pangle):
    """CIoU; values not above 0 and NaN become 0."""
    width = tl.maximum(tl.minimum(gx2, px2) - tl.maximum(gx1, px1), 0.0)
    height = tl.maximum(tl.minimum(gy2, py2) - tl.maximum(gy1, py1), 0.0)
    inter = width * height
    iou = tl.div_rn(inter, garea + parea - inter + 1e-7)
    x, y = px1 + px2 - gx1 - gx2, py1 + py2 - gy1 - gy2
    across, down = tl.maximum(gx2, px2) - tl.minimum(gx1, px1), tl.maximum(gy2, py2) - tl.minimum(gy1, py1)
    distance = tl.div_rn((x * x + y * y) * 0.25, across * across + down * down + 1e-7)
    turn = pangle - gangle
    aspect = 0.40528473456935116 * (turn * turn)  # 4 / pi^2
    ciou = iou - (distance + aspect * tl.div_rn(aspect, 1.0 - iou + aspect + 1e-7))
    return tl.where(ciou > 0.0, ciou, 0.0)


@triton.jit
def score_of(s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8, b, c, a, end0, end1, mask):
    """Class scores of anchors, each read from its own level."""
    first, second, third = mask & (a < end0), mask & (a >= end0) & (a < end1), mask & (a >= end1)
    b, c = b.to(tl.int64), c.to(tl.int64)
    index0 = b * t0 + c * t1 + a * t2
    index1 = b * t3 + c * t4 + (a - end0) * t5
    index2 = b * t6 + c * t7 + (a - end1) * t8
    return (
        tl.load(s0 + index0, first, 0.0).to(tl.float32)
        + tl.load(s1 + index1, second, 0.0).to(tl.float32)
        + tl.load(s2 + index2, third, 0.0).to(tl.float32)
    )


@triton.jit
def metric_of(score, iou, mask, alpha: tl.constexpr, beta: tl.constexpr, logits: tl.constexpr):
    """Metric s^alpha * u^beta; 0 outside the mask and where it is not above 0."""
    if logits:
        score = tl.div_rn(1.0, 1.0 + tl.exp(-score))
    product = _power(score, alpha) * _power(iou, beta)
    return tl.where(mask & (product > 0.0), product, 0.0)


@triton.jit
def _power(base, exponent: tl.constexpr):
    """``yolo_loss.assignment.params.power`` for the exponents in ``yolo_loss.assignment.triton.EXPONENTS``."""
    square = base * base
    if exponent == 0.0:
        result = tl.zeros_like(base) + 1.0
    elif exponent == 0.5:
        result = tl.sqrt_rn(base)
    elif exponent == 1.0:
        result = base
    elif exponent == 2.0:
        result = square
    elif exponent == 3.0:
        result = base * square
    elif exponent == 4.0:
        result = square * square
    elif exponent == 5.0:
        result = base * (square * square)
    else:
        result = square * (square * square)
    return result

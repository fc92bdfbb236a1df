"""The two kernels of ``yolo_loss.assignment.triton``; they need the package ``triton``."""

from __future__ import annotations

import triton
import triton.language as tl

# Larger than every anchor's index.
NOWHERE = tl.constexpr(2**30)


@triton.jit
def choose(
    points, boxes, truth_boxes, areas, labels, valid, s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8,
    count, chooser, slots, anchors, total, truths, end0, end1, eps,
    k: tl.constexpr, room: tl.constexpr, alpha: tl.constexpr, beta: tl.constexpr, logits: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """A ground truth's k anchors of largest metric above 0; among equal ones the smaller index.

    Adds 1 to ``count`` (B, A) at each, and writes the slot into ``chooser`` (B, A).
    """
    g = tl.program_id(0)
    b = g // slots
    if tl.load(valid + g):
        place = tl.arange(0, room)
        # The k best so far. Places without one hold 0; those from k on are never the least.
        best = tl.where(place < k, 0.0, float("inf"))
        who = -1 - place
        for begin in range(0, anchors, block):
            a = begin + tl.arange(0, block)
            inside = is_inside(points, areas, anchors, truths, a, g, eps, a < anchors)
            if tl.max(inside.to(tl.int32), 0) > 0:
                iou = ciou_at(boxes, total, b * anchors + a, truth_boxes, truths, g, inside, False)
                score = score_of(
                    s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8, b, tl.load(labels + g), a, end0, end1, inside
                )
                metric = metric_of(score, iou, inside, alpha, beta, logits)
                max_foreground, least = tl.max(metric, 0), tl.min(best, 0)
                while max_foreground > least:
                    at = tl.min(tl.where(metric == max_foreground, a, NOWHERE), 0)
                    # Among equal ones the largest index makes room.
                    leaves = tl.max(tl.where(best == least, who, -NOWHERE), 0)
                    here = (best == least) & (who == leaves)
                    best = tl.where(here, max_foreground, best)
                    who = tl.where(here, at, who)
                    metric = tl.where(a == at, 0.0, metric)
                    max_foreground, least = tl.max(metric, 0), tl.min(best, 0)
        chosen = who >= 0
        tl.atomic_add(count + b * anchors + who, 1, chosen)
        # Of several the last one stays, which is looked at only where there is one.
        tl.store(chooser + b * anchors + who, g - b * slots, chosen)


@triton.jit
def settle(
    points, boxes, truth_boxes, areas, labels, valid, s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8,
    count, chooser, owner, metrics, max_metric, max_iou, slots, anchors, total, truths, end0, end1, eps,
    alpha: tl.constexpr, beta: tl.constexpr, logits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Each anchor's owner, its metric with it, and the largest metric and overlap of each ground truth's anchors.

    An anchor chosen by several goes to the largest overlap among all whose candidate it is; ties: smallest slot.
    """
    b = tl.program_id(1)
    a = tl.program_id(0) * block + tl.arange(0, block)
    here = b * anchors + a
    times = tl.load(count + here, a < anchors, 0)
    contested = times > 1
    own = tl.load(chooser + here, times == 1, 0)
    if tl.max(contested.to(tl.int32), 0) > 0:
        largest = tl.zeros([block], tl.float32) - 1.0
        for m in range(0, slots):
            g = b * slots + m
            if tl.load(valid + g):
                inside = is_inside(points, areas, anchors, truths, a, g, eps, contested)
                if tl.max(inside.to(tl.int32), 0) > 0:
                    iou = ciou_at(boxes, total, here, truth_boxes, truths, g, inside, False)
                    better = inside & (iou > largest)
                    largest = tl.where(better, iou, largest)
                    own = tl.where(better, m, own)
    foreground = times > 0
    g = b * slots + own
    iou = ciou_at(boxes, total, here, truth_boxes, truths, g, foreground, True)
    score = score_of(
        s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8, b, tl.load(labels + g, foreground, 0), a, end0, end1, foreground
    )
    metric = metric_of(score, iou, foreground, alpha, beta, logits)
    tl.store(owner + here, own, a < anchors)
    tl.store(metrics + here, metric, a < anchors)
    tl.atomic_max(max_metric + g, metric, foreground)
    tl.atomic_max(max_iou + g, iou, foreground)


@triton.jit
def ciou_of(gx1, gy1, gx2, gy2, garea, gangle, px1, py1, px2, py2, parea, pangle):
    """CIoU; what is not above 0, and what is no number, counts as 0."""
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
def _power(base, exponent: tl.constexpr):
    """``yolo_loss.assignment.params.power`` for the exponents that ``triton_assign.EXPONENTS`` names."""
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


@triton.jit
def metric_of(score, iou, foreground, alpha: tl.constexpr, beta: tl.constexpr, logits: tl.constexpr):
    """s^alpha * u^beta, 0 where it is not above 0."""
    if logits:
        score = tl.div_rn(1.0, 1.0 + tl.exp(-score))
    product = _power(score, alpha) * _power(iou, beta)
    return tl.where(foreground & (product > 0.0), product, 0.0)


@triton.jit
def is_inside(points, areas, anchors, truths, a, g, eps, wanted):
    """Whether the anchor's point lies in the box's candidate area."""
    px, py = tl.load(points + a, wanted, 0.0), tl.load(points + anchors + a, wanted, 0.0)
    x1, y1 = tl.load(areas + g), tl.load(areas + truths + g)
    x2, y2 = tl.load(areas + 2 * truths + g), tl.load(areas + 3 * truths + g)
    nearest = tl.minimum(tl.minimum(px - x1, x2 - px), tl.minimum(py - y1, y2 - py))
    return wanted & (nearest > eps)


@triton.jit
def ciou_at(boxes, total, place, truth_boxes, truths, g, wanted, each: tl.constexpr):
    """CIoU of anchors with one ground truth, or where ``each`` with one of their own each."""
    here = wanted if each else None
    zero = 0.0 if each else None
    return ciou_of(
        tl.load(truth_boxes + g, here, zero),
        tl.load(truth_boxes + truths + g, here, zero),
        tl.load(truth_boxes + 2 * truths + g, here, zero),
        tl.load(truth_boxes + 3 * truths + g, here, zero),
        tl.load(truth_boxes + 4 * truths + g, here, zero),
        tl.load(truth_boxes + 5 * truths + g, here, zero),
        tl.load(boxes + place, wanted, 0.0),
        tl.load(boxes + total + place, wanted, 0.0),
        tl.load(boxes + 2 * total + place, wanted, 0.0),
        tl.load(boxes + 3 * total + place, wanted, 0.0),
        tl.load(boxes + 4 * total + place, wanted, 0.0),
        tl.load(boxes + 5 * total + place, wanted, 0.0),
    )


@triton.jit
def score_of(s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8, b, c, a, end0, end1, wanted):
    """Class scores of anchors, each from the level that it is of."""
    first, second, third = wanted & (a < end0), wanted & (a >= end0) & (a < end1), wanted & (a >= end1)
    b, c = b.to(tl.int64), c.to(tl.int64)
    place0 = b * t0 + c * t1 + a * t2
    place1 = b * t3 + c * t4 + (a - end0) * t5
    place2 = b * t6 + c * t7 + (a - end1) * t8
    return (
        tl.load(s0 + place0, first, 0.0).to(tl.float32)
        + tl.load(s1 + place1, second, 0.0).to(tl.float32)
        + tl.load(s2 + place2, third, 0.0).to(tl.float32)
    )

"""The two kernels of ``yolo_loss.triton_assign``; they need the package ``triton``."""

from __future__ import annotations

import triton
import triton.language as tl

from yolo_loss.triton_terms import is_inside, metric_of, overlap_at, score_of

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
                overlap = overlap_at(boxes, total, b * anchors + a, truth_boxes, truths, g, inside, False)
                score = score_of(
                    s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8, b, tl.load(labels + g), a, end0, end1, inside
                )
                metric = metric_of(score, overlap, inside, alpha, beta, logits)
                most, least = tl.max(metric, 0), tl.min(best, 0)
                while most > least:
                    at = tl.min(tl.where(metric == most, a, NOWHERE), 0)
                    # Among equal ones the largest index makes room.
                    leaves = tl.max(tl.where(best == least, who, -NOWHERE), 0)
                    here = (best == least) & (who == leaves)
                    best = tl.where(here, most, best)
                    who = tl.where(here, at, who)
                    metric = tl.where(a == at, 0.0, metric)
                    most, least = tl.max(metric, 0), tl.min(best, 0)
        chosen = who >= 0
        tl.atomic_add(count + b * anchors + who, 1, chosen)
        # Of several the last one stays, which is looked at only where there is one.
        tl.store(chooser + b * anchors + who, g - b * slots, chosen)


@triton.jit
def settle(
    points, boxes, truth_boxes, areas, labels, valid, s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8,
    count, chooser, owner, metrics, most_metric, most_overlap, slots, anchors, total, truths, end0, end1, eps,
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
                    overlap = overlap_at(boxes, total, here, truth_boxes, truths, g, inside, False)
                    better = inside & (overlap > largest)
                    largest = tl.where(better, overlap, largest)
                    own = tl.where(better, m, own)
    foreground = times > 0
    g = b * slots + own
    overlap = overlap_at(boxes, total, here, truth_boxes, truths, g, foreground, True)
    score = score_of(
        s0, s1, s2, t0, t1, t2, t3, t4, t5, t6, t7, t8, b, tl.load(labels + g, foreground, 0), a, end0, end1, foreground
    )
    metric = metric_of(score, overlap, foreground, alpha, beta, logits)
    tl.store(owner + here, own, a < anchors)
    tl.store(metrics + here, metric, a < anchors)
    tl.atomic_max(most_metric + g, metric, foreground)
    tl.atomic_max(most_overlap + g, overlap, foreground)

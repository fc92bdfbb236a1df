"""Task-aligned assignment over the candidate pairs alone (Feng et al., arXiv 2108.07755).

Time and memory follow P, the pairs of a ground truth and an anchor inside it, a few per cent of B * M * A, and B * M
times the rows of anchors (140 at 640 pixels). The results are those of ``yolo_loss.dense``, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.class_scores import ClassScores
from yolo_loss.overlap import ciou_of_sides
from yolo_loss.pairs import Pairs, list_pairs
from yolo_loss.params import AssignerParams, enlarge
from yolo_loss.ragged_topk import select_topk
from yolo_loss.results import Assignment, GroundTruth
from yolo_loss.segments import sum_per_segment


class Metrics(NamedTuple):
    """Of each pair, (P,) each: overlap u and metric t = s^alpha * u^beta."""

    overlap: Tensor
    metric: Tensor


def assign_sparse(
    scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth, params: AssignerParams
) -> Assignment:
    """Give each anchor at most one ground truth.

    Args:
        scores: Class scores of all anchors.
        pd_bboxes: (B, A, 4) predicted boxes, pixel xyxy.
        anc_points: (A, 2) pixels.
        ground_truth: Padded, M >= 1.
        params: Hyper-parameters.

    Returns:
        The assignment in compact form.
    """
    boxes = ground_truth.gt_bboxes
    areas = boxes if params.min_box_side is None else enlarge(boxes, params.min_box_side)
    pairs = list_pairs(anc_points, areas, ground_truth.mask_gt.squeeze(-1), params.eps)
    metrics = align_metric(pairs, scores, pd_bboxes, ground_truth, params)
    chosen = select_topk(metrics.metric, pairs.slot, pairs.per_slot, params.topk)
    assigned = one_owner(pairs, chosen, metrics.overlap, anchors=pd_bboxes.shape[0] * pd_bboxes.shape[1])
    if params.topk2 is not None:
        slot = pairs.slot[assigned]
        count = sum_per_segment(slot, torch.ones_like(slot), pairs.per_slot.shape[0])
        kept = select_topk(metrics.metric[assigned], slot, count, params.topk2)
        assigned = assigned[kept]
    return soft_scores(pairs, assigned, metrics, pd_bboxes.shape[:2], boxes.shape[1], params.eps)


def align_metric(
    pairs: Pairs,
    scores: ClassScores,
    pd_bboxes: Tensor,
    ground_truth: GroundTruth,
    params: AssignerParams,
) -> Metrics:
    """Overlap and metric of each pair; 0 where they are not a number or not above it."""
    predicted = [side.flatten().index_select(0, pairs.anchor) for side in pd_bboxes.unbind(-1)]
    wanted = [side.flatten().index_select(0, pairs.slot) for side in ground_truth.gt_bboxes.unbind(-1)]
    overlap = ciou_of_sides(wanted, predicted)
    overlap = torch.where(overlap > 0, overlap, 0.0)
    labels = ground_truth.gt_labels.flatten().clamp(min=0).index_select(0, pairs.slot)
    anchors = pd_bboxes.shape[1]
    image = torch.div(pairs.anchor, anchors, rounding_mode="floor")
    own = scores.of_pairs(image, labels, pairs.anchor - image * anchors)
    metric = own.pow(params.alpha) * overlap.pow(params.beta)
    return Metrics(overlap, torch.where(metric > 0, metric, 0.0))


def one_owner(pairs: Pairs, chosen: Tensor, overlap: Tensor, anchors: int) -> Tensor:
    """An anchor chosen by several goes to the largest overlap among all whose candidate it is; ties: smallest slot.

    Args:
        pairs: All candidates.
        chosen: (N,) places in ``pairs``.
        overlap: (P,).
        anchors: B * A.

    Returns:
        Places of the assigned pairs, ascending, each anchor at most once.
    """
    wanted = pairs.anchor[chosen]
    times = sum_per_segment(wanted, torch.ones_like(wanted), anchors)
    contested = times > 1  # (B * A,)
    rivals = contested[pairs.anchor].nonzero().squeeze(1)
    anchor = pairs.anchor[rivals]
    largest = overlap.new_full((anchors,), -1.0).scatter_reduce(0, anchor, overlap[rivals], "amax")
    # Pairs are ordered by slot, so the smallest place is the smallest slot.
    leading = rivals[(overlap[rivals] == largest[anchor]).nonzero().squeeze(1)]
    nobody = overlap.shape[0]
    winner = leading.new_full((anchors,), nobody).scatter_reduce(0, pairs.anchor[leading], leading, "amin")
    undisputed = chosen[(~contested[wanted]).nonzero().squeeze(1)]
    return torch.cat((undisputed, winner[winner < nobody])).sort().values


def soft_scores(
    pairs: Pairs, assigned: Tensor, metrics: Metrics, shape: Sequence[int], slots: int, eps: float
) -> Assignment:
    """Weight of each assigned anchor: t * max_u / (max_t + eps), multiplied first.

    Args:
        pairs: All candidates.
        assigned: (N,) places in ``pairs``, each anchor at most once.
        metrics: Of all candidates.
        shape: (B, A).
        slots: M.
        eps: Keeps the quotient finite.

    Returns:
        The assignment in compact form.
    """
    slot, anchor = pairs.slot[assigned], pairs.anchor[assigned]
    metric, overlap = metrics.metric[assigned], metrics.overlap[assigned]
    nothing = metric.new_zeros(pairs.per_slot.shape[0])
    max_metric = nothing.scatter_reduce(0, slot, metric, "amax")
    max_overlap = nothing.scatter_reduce(0, slot, overlap, "amax")
    weight = metric * max_overlap[slot] / (max_metric[slot] + eps)

    images, anchors = shape
    background = anchor.new_zeros(images * anchors)
    owner = background.index_put((anchor,), slot - torch.div(slot, slots, rounding_mode="floor") * slots)
    weights = weight.new_zeros(images * anchors).index_put((anchor,), weight)
    foreground = background.bool().index_put((anchor,), torch.ones_like(anchor, dtype=torch.bool))
    return Assignment(foreground.view(images, anchors), owner.view(images, anchors), weights.view(images, anchors))

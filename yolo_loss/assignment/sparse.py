"""Task-aligned assignment over the candidate pairs alone (Feng et al., arXiv 2108.07755).

Time and memory follow P, the pairs of a ground truth and an anchor inside it, a few per cent of B * M * A. The results
are those of ``yolo_loss.assignment.dense``, to the bit.
"""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.anchor_grid import Pairs, Runs, list_runs, pairs_of_images, write_out
from yolo_loss.assignment.params import AssignerParams, candidate_areas, power
from yolo_loss.assignment.segment_ops import count_true, in_graph, keep_last, places_of, select_topk, sum_per_segment
from yolo_loss.boxes import Measured, ciou_of_measured, measure
from yolo_loss.execution.channels import ClassScores
from yolo_loss.execution.chunks import join, one_portion, portions
from yolo_loss.execution.compilation import kernel
from yolo_loss.structures import Assignment, GroundTruth

# Pairs in one portion: some twenty lists of this length fit a processor's second and third cache.
PAIRS_AT_ONCE = 2**17


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
    runs = list_runs(anc_points, candidate_areas(boxes, params), ground_truth.mask_gt.squeeze(-1), params.eps)
    predicted = measure([side.contiguous() for side in pd_bboxes.unbind(-1)])
    labels = ground_truth.gt_labels.squeeze(-1).clamp(min=0)
    whole = Part(runs, scores, predicted, measure(boxes.unbind(-1)), labels)
    parts = [assign_part(part, params) for part in split(whole)]
    return join(parts)


def split(whole: Part) -> list[Part]:
    """Portions of images; no ground truth reaches into another image, so the results are the same."""
    runs, images, slots, anchors = whole.runs, *whole.labels.shape, whole.predicted.x1.shape[1]
    if one_portion(whole.labels.device):
        return [whole]
    chosen = portions(pairs_of_images(runs, images, slots).tolist(), PAIRS_AT_ONCE)
    edges = torch.searchsorted(runs.slot, runs.slot.new_tensor([part.stop * slots for part in chosen])).tolist()
    parts, begin = [], 0
    for part, end in zip(chosen, edges, strict=True):
        slot, first, length = (field[begin:end] for field in runs)
        own_runs = Runs(slot - part.start * slots, first - part.start * anchors, length)
        predicted, wanted = (boxes.apply(itemgetter(part)) for boxes in (whole.predicted, whole.wanted))
        parts.append(Part(own_runs, whole.scores.of_images(part), predicted, wanted, whole.labels[part]))
        begin = end
    return parts


def assign_part(part: Part, params: AssignerParams) -> Assignment:
    """The assignment of some images."""
    images, slots = part.labels.shape
    anchors = part.predicted.x1.shape[1]
    candidates = find_candidates(part, params)
    pairs, metric = candidates.pairs, candidates.metric
    chosen = select_topk(metric, pairs.slot, candidates.per_slot, params.topk)
    # One place more, for the anchor of a graph's filler.
    assigned = one_owner(candidates, chosen, images * anchors + 1)
    if params.topk2 is not None:
        own, slot = metric.index_select(0, assigned), pairs.slot.index_select(0, assigned)
        count = sum_per_segment(slot, torch.ones_like(slot), images * slots)
        kept = select_topk(own, slot, count, params.topk2)
        assigned = assigned.index_select(0, kept)
    return soft_scores(candidates, assigned, (images, slots, anchors), params.eps)


def one_owner(candidates: Candidates, chosen: Tensor, anchors: int) -> Tensor:
    """An anchor chosen by several goes to the largest overlap among all whose candidate it is; ties: smallest slot.

    Args:
        candidates: (P,) each.
        chosen: (N,) places in ``candidates``.
        anchors: How many there may be, B * A or more.

    Returns:
        Places of the assigned pairs, ascending, each anchor at most once; in a graph the filler twice.
    """
    overlap, all_anchors = candidates.overlap, candidates.pairs.anchor
    wanted = all_anchors.index_select(0, chosen)
    contested = sum_per_segment(wanted, torch.ones_like(wanted), anchors) > 1  # (B * A,)
    rivals = places_of(keep_last(contested.index_select(0, all_anchors)))
    anchor, own = all_anchors.index_select(0, rivals), overlap.index_select(0, rivals)
    largest = overlap.new_full((anchors,), -1.0).scatter_reduce(0, anchor, own, "amax")
    leading = places_of(own == largest.index_select(0, anchor))
    # Pairs are ordered by slot, so the smallest place is the smallest slot.
    place, nobody = rivals.index_select(0, leading), overlap.shape[0]
    winner = place.new_full((anchors,), nobody).scatter_reduce(0, anchor.index_select(0, leading), place, "amin")
    alone = places_of(~contested.index_select(0, wanted))
    won = places_of(winner < nobody)
    return torch.cat((chosen.index_select(0, alone), winner.index_select(0, won))).sort().values


def soft_scores(candidates: Candidates, assigned: Tensor, shape: tuple[int, int, int], eps: float) -> Assignment:
    """Weight of each assigned anchor: t * max_u / (max_t + eps), multiplied first.

    Args:
        candidates: (P,) each.
        assigned: (N,) places in ``candidates``, each anchor at most once.
        shape: B, M, A.
        eps: Keeps the quotient finite.

    Returns:
        The assignment in compact form.
    """
    images, slots, anchors = shape
    slot, anchor, overlap, metric = (
        field.index_select(0, assigned) for field in (*candidates.pairs, candidates.overlap, candidates.metric)
    )
    nothing = metric.new_zeros(images * slots)
    max_metric = nothing.scatter_reduce(0, slot, metric, "amax").index_select(0, slot)
    max_overlap = nothing.scatter_reduce(0, slot, overlap, "amax").index_select(0, slot)
    weight = metric * max_overlap / (max_metric + eps)

    total = images * anchors
    background = anchor.new_zeros(total + 1)
    owner = background.index_put((anchor,), slot - torch.div(slot, slots, rounding_mode="floor") * slots)
    weights = weight.new_zeros(total + 1).index_put((anchor,), weight)
    foreground = background.bool().index_put((anchor,), torch.ones_like(anchor, dtype=torch.bool))
    return Assignment(*(field[:total].view(images, anchors) for field in (foreground, owner, weights)))


class Part(NamedTuple):
    """What the assignment of some images needs; all indices count from the first of them.

    Attributes:
        runs: Their candidates.
        scores: Class scores of all anchors.
        predicted: Predicted boxes, (b, A) each.
        wanted: Ground truths, (b, M) each.
        labels: (b, M).
    """

    runs: Runs
    scores: ClassScores
    predicted: Measured
    wanted: Measured
    labels: Tensor


class Candidates(NamedTuple):
    """Candidate pairs whose boxes overlap.

    Attributes:
        pairs: (P,) each, ordered by ground truth, then by anchor.
        overlap: (P,) u.
        metric: (P,) t = s^alpha * u^beta.
        per_slot: (B * M,) int64, how many each ground truth has.
    """

    pairs: Pairs
    overlap: Tensor
    metric: Tensor
    per_slot: Tensor


def find_candidates(part: Part, params: AssignerParams) -> Candidates:
    """The candidate pairs of some images."""
    pairs = write_out(part.runs)
    overlap = overlap_of_pairs(part.wanted, part.predicted, pairs)
    per_slot = sum_per_segment(part.runs.slot, part.runs.length, part.labels.shape[0] * part.labels.shape[1])
    if params.beta > 0:
        # A pair without overlap has metric 0: it is never chosen, and it wins no anchor from a pair that is.
        overlaps = keep_last(overlap > 0)
        per_slot = count_true(overlaps, per_slot)
        touching = places_of(overlaps)
        overlap = overlap.index_select(0, touching)
        pairs = Pairs(*(field.index_select(0, touching) for field in pairs))
    overlap, metric = metric_of_pairs(part.scores, part.labels, pairs, overlap, params)
    return Candidates(filler_aside(pairs, part.predicted.x1.numel()), overlap, metric, per_slot)


def filler_aside(pairs: Pairs, anchors: int) -> Pairs:
    """Pairs (P,); in a graph the last one's anchor is no real one but B * A, the number of all anchors."""
    if not in_graph():
        return pairs
    aside = torch.zeros_like(pairs.anchor[-1:]) + anchors
    return pairs._replace(anchor=torch.cat((pairs.anchor[:-1], aside)))


@kernel
def overlap_of_pairs(wanted: Measured, predicted: Measured, pairs: Pairs) -> Tensor:
    """CIoU of each pair, (P,)."""
    return ciou_of_measured(
        wanted.apply(lambda field: field.flatten().index_select(0, pairs.slot)),
        predicted.apply(lambda field: field.flatten().index_select(0, pairs.anchor)),
    )


@kernel
def metric_of_pairs(
    scores: ClassScores, labels: Tensor, pairs: Pairs, overlap: Tensor, params: AssignerParams
) -> tuple[Tensor, Tensor]:
    """Overlap u and metric t = s^alpha * u^beta of each pair; 0 where one is not a number or not above 0."""
    overlap = torch.where(overlap > 0, overlap, 0.0)
    own = scores.of_pairs(labels, pairs.slot, pairs.anchor)
    metric = power(own, params.alpha) * power(overlap, params.beta)
    return overlap, torch.where(metric > 0, metric, 0.0)

"""Task-aligned assignment over the candidate pairs alone (Feng et al., arXiv 2108.07755).

Time and memory follow P, the pairs of a ground truth and an anchor inside it, a few per cent of B * M * A. The results
are those of ``yolo_loss.assignment.dense``, to the bit.
"""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.anchor_grid import (
    CandidatePairs,
    IndexRanges,
    candidate_ranges,
    count_pairs_per_image,
    expand_ranges,
)
from yolo_loss.assignment.params import AssignerParams, candidate_areas, power
from yolo_loss.assignment.segment_ops import (
    is_exporting,
    keep_dummy,
    segment_count_true,
    segment_sum,
    select_topk,
    true_indices,
)
from yolo_loss.boxes import BoxGeometry, box_geometry, ciou_of_geometry
from yolo_loss.execution.channels import ClassScores
from yolo_loss.execution.chunks import chunk_slices, concatenate_assignments, is_unchunked
from yolo_loss.execution.compilation import kernel
from yolo_loss.structures import Assignment, GroundTruth

# Pairs in one portion: some twenty lists of this length fit a processor's second and third cache.
PAIRS_PER_CHUNK = 2**17


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
    runs = candidate_ranges(anc_points, candidate_areas(boxes, params), ground_truth.mask_gt.squeeze(-1), params.eps)
    predicted = box_geometry([side.contiguous() for side in pd_bboxes.unbind(-1)])
    labels = ground_truth.gt_labels.squeeze(-1).clamp(min=0)
    whole = ImageChunk(runs, scores, predicted, box_geometry(boxes.unbind(-1)), labels)
    parts = [assign_chunk(part, params) for part in split(whole)]
    return concatenate_assignments(parts)


def split(whole: ImageChunk) -> list[ImageChunk]:
    """Portions of images; no ground truth reaches into another image, so the results are the same."""
    runs, images, slots, anchors = whole.runs, *whole.labels.shape, whole.predicted.x1.shape[1]
    if is_unchunked(whole.labels.device):
        return [whole]
    chosen = chunk_slices(count_pairs_per_image(runs, images, slots).tolist(), PAIRS_PER_CHUNK)
    edges = torch.searchsorted(runs.slot, runs.slot.new_tensor([part.stop * slots for part in chosen])).tolist()
    parts, begin = [], 0
    for part, end in zip(chosen, edges, strict=True):
        slot, first, length = (field[begin:end] for field in runs)
        own_ranges = IndexRanges(slot - part.start * slots, first - part.start * anchors, length)
        predicted, wanted = (boxes.apply(itemgetter(part)) for boxes in (whole.predicted, whole.wanted))
        parts.append(ImageChunk(own_ranges, whole.scores.of_images(part), predicted, wanted, whole.labels[part]))
        begin = end
    return parts


def assign_chunk(part: ImageChunk, params: AssignerParams) -> Assignment:
    """The assignment of some images."""
    images, slots = part.labels.shape
    anchors = part.predicted.x1.shape[1]
    candidates = find_candidates(part, params)
    pairs, metric = candidates.pairs, candidates.metric
    chosen = select_topk(metric, pairs.slot, candidates.per_slot, params.topk)
    # One place more, for the anchor of a graph's filler.
    assigned = resolve_conflicts(candidates, chosen, images * anchors + 1)
    if params.topk2 is not None:
        own, slot = metric.index_select(0, assigned), pairs.slot.index_select(0, assigned)
        count = segment_sum(slot, torch.ones_like(slot), images * slots)
        kept = select_topk(own, slot, count, params.topk2)
        assigned = assigned.index_select(0, kept)
    return normalize_scores(candidates, assigned, (images, slots, anchors), params.eps)


def resolve_conflicts(candidates: Candidates, chosen: Tensor, anchors: int) -> Tensor:
    """An anchor chosen by several goes to the largest overlap among all whose candidate it is; ties: smallest slot.

    Args:
        candidates: (P,) each.
        chosen: (N,) places in ``candidates``.
        anchors: How many there may be, B * A or more.

    Returns:
        Places of the assigned pairs, ascending, each anchor at most once; in a graph the filler twice.
    """
    iou, all_anchors = candidates.iou, candidates.pairs.anchor
    wanted = all_anchors.index_select(0, chosen)
    contested = segment_sum(wanted, torch.ones_like(wanted), anchors) > 1  # (B * A,)
    rivals = true_indices(keep_dummy(contested.index_select(0, all_anchors)))
    anchor, own = all_anchors.index_select(0, rivals), iou.index_select(0, rivals)
    largest = iou.new_full((anchors,), -1.0).scatter_reduce(0, anchor, own, "amax")
    leading = true_indices(own == largest.index_select(0, anchor))
    # Pairs are ordered by slot, so the smallest place is the smallest slot.
    place, nobody = rivals.index_select(0, leading), iou.shape[0]
    winner = place.new_full((anchors,), nobody).scatter_reduce(0, anchor.index_select(0, leading), place, "amin")
    alone = true_indices(~contested.index_select(0, wanted))
    won = true_indices(winner < nobody)
    return torch.cat((chosen.index_select(0, alone), winner.index_select(0, won))).sort().values


def normalize_scores(candidates: Candidates, assigned: Tensor, shape: tuple[int, int, int], eps: float) -> Assignment:
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
    slot, anchor, iou, metric = (
        field.index_select(0, assigned) for field in (*candidates.pairs, candidates.iou, candidates.metric)
    )
    nothing = metric.new_zeros(images * slots)
    max_metric = nothing.scatter_reduce(0, slot, metric, "amax").index_select(0, slot)
    max_iou = nothing.scatter_reduce(0, slot, iou, "amax").index_select(0, slot)
    weight = metric * max_iou / (max_metric + eps)

    total = images * anchors
    background = anchor.new_zeros(total + 1)
    owner = background.index_put((anchor,), slot - torch.div(slot, slots, rounding_mode="floor") * slots)
    weights = weight.new_zeros(total + 1).index_put((anchor,), weight)
    foreground = background.bool().index_put((anchor,), torch.ones_like(anchor, dtype=torch.bool))
    return Assignment(*(field[:total].view(images, anchors) for field in (foreground, owner, weights)))


class ImageChunk(NamedTuple):
    """What the assignment of some images needs; all indices count from the first of them.

    Attributes:
        runs: Their candidates.
        scores: Class scores of all anchors.
        predicted: Predicted boxes, (b, A) each.
        wanted: Ground truths, (b, M) each.
        labels: (b, M).
    """

    runs: IndexRanges
    scores: ClassScores
    predicted: BoxGeometry
    wanted: BoxGeometry
    labels: Tensor


class Candidates(NamedTuple):
    """Candidate pairs whose boxes overlap.

    Attributes:
        pairs: (P,) each, ordered by ground truth, then by anchor.
        overlap: (P,) u.
        metric: (P,) t = s^alpha * u^beta.
        per_slot: (B * M,) int64, how many each ground truth has.
    """

    pairs: CandidatePairs
    iou: Tensor
    metric: Tensor
    per_slot: Tensor


def find_candidates(part: ImageChunk, params: AssignerParams) -> Candidates:
    """The candidate pairs of some images."""
    pairs = expand_ranges(part.runs)
    iou = iou_of_pairs(part.wanted, part.predicted, pairs)
    per_slot = segment_sum(part.runs.slot, part.runs.length, part.labels.shape[0] * part.labels.shape[1])
    if params.beta > 0:
        # A pair without overlap has metric 0: it is never chosen, and it wins no anchor from a pair that is.
        ious = keep_dummy(iou > 0)
        per_slot = segment_count_true(ious, per_slot)
        touching = true_indices(ious)
        iou = iou.index_select(0, touching)
        pairs = CandidatePairs(*(field.index_select(0, touching) for field in pairs))
    iou, metric = metric_of_pairs(part.scores, part.labels, pairs, iou, params)
    return Candidates(filler_aside(pairs, part.predicted.x1.numel()), iou, metric, per_slot)


def filler_aside(pairs: CandidatePairs, anchors: int) -> CandidatePairs:
    """Pairs (P,); in a graph the last one's anchor is no real one but B * A, the number of all anchors."""
    if not is_exporting():
        return pairs
    aside = torch.zeros_like(pairs.anchor[-1:]) + anchors
    return pairs._replace(anchor=torch.cat((pairs.anchor[:-1], aside)))


@kernel
def iou_of_pairs(wanted: BoxGeometry, predicted: BoxGeometry, pairs: CandidatePairs) -> Tensor:
    """CIoU of each pair, (P,)."""
    return ciou_of_geometry(
        wanted.apply(lambda field: field.flatten().index_select(0, pairs.slot)),
        predicted.apply(lambda field: field.flatten().index_select(0, pairs.anchor)),
    )


@kernel
def metric_of_pairs(
    scores: ClassScores, labels: Tensor, pairs: CandidatePairs, iou: Tensor, params: AssignerParams
) -> tuple[Tensor, Tensor]:
    """Overlap u and metric t = s^alpha * u^beta of each pair; 0 where one is not a number or not above 0."""
    iou = torch.where(iou > 0, iou, 0.0)
    own = scores.of_pairs(labels, pairs.slot, pairs.anchor)
    metric = power(own, params.alpha) * power(iou, params.beta)
    return iou, torch.where(metric > 0, metric, 0.0)

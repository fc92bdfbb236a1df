"""Task-aligned assignment over the candidate pairs alone (Feng et al., arXiv 2108.07755).

Time and memory are proportional to P, the pairs of a ground truth and an anchor inside it: a few per cent of B * M * A.
The results equal those of ``yolo_loss.assignment.dense`` to the bit.
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
from yolo_loss.assignment.params import AssignerParams, enlarge, power
from yolo_loss.assignment.segment_ops import (
    keep_dummy,
    segment_count_true,
    segment_sum,
    segment_topk,
    true_indices,
)
from yolo_loss.boxes import BoxGeometry, box_geometry, ciou_of_geometry
from yolo_loss.execution.buffers import repeat
from yolo_loss.execution.channels import ClassScores
from yolo_loss.execution.chunks import chunk_slices, concatenate_assignments, runs_unchunked
from yolo_loss.execution.compilation import kernel
from yolo_loss.structures import Assignment, GroundTruth

# Pairs of one chunk of images: some twenty lists of this length fit a processor's second and third cache.
PAIRS_PER_CHUNK = 2**17


class ImageChunk(NamedTuple):
    """Inputs for a chunk of b images; all indices count from its first image.

    Attributes:
        ranges: Candidates.
        scores: Class scores of all anchors.
        predicted: Predicted boxes, (b, A) each.
        truth: Ground-truth boxes, (b, M) each.
        labels: (b, M).
    """

    ranges: IndexRanges
    scores: ClassScores
    predicted: BoxGeometry
    truth: BoxGeometry
    labels: Tensor


class Candidates(NamedTuple):
    """Candidate pairs; those without overlap are left out where they cannot be chosen.

    Attributes:
        pairs: (P,) each, ordered by ground truth, then by anchor.
        iou: (P,) u.
        metric: (P,) t = s^alpha * u^beta.
        per_slot: (B * M,) int64, candidates of each ground truth.
    """

    pairs: CandidatePairs
    iou: Tensor
    metric: Tensor
    per_slot: Tensor


def assign_sparse(
    scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth, params: AssignerParams
) -> Assignment:
    """Assign at most one ground truth to each anchor.

    Args:
        scores: Class scores of all anchors.
        pd_bboxes: (B, A, 4) predicted boxes, pixel xyxy.
        anc_points: (A, 2) pixels, or (S, A, 2) with S 1 or B.
        ground_truth: Padded, M >= 1.
        params: Hyper-parameters.

    Returns:
        The assignment in compact form.
    """
    boxes = ground_truth.gt_bboxes
    ranges = candidate_ranges(
        anc_points, enlarge(boxes, params.min_box_side), ground_truth.mask_gt.squeeze(-1), params.eps
    )
    predicted = box_geometry([side.contiguous() for side in pd_bboxes.unbind(-1)])
    labels = ground_truth.gt_labels.squeeze(-1).clamp(min=0)
    batch = ImageChunk(ranges, scores, predicted, box_geometry(boxes.unbind(-1)), labels)
    return concatenate_assignments([_assign_chunk(chunk, params) for chunk in _split_into_chunks(batch)])


def _split_into_chunks(batch: ImageChunk) -> list[ImageChunk]:
    """Split a batch by images; no ground truth reaches into another image, so the results are the same."""
    ranges, images, slots, anchors = batch.ranges, *batch.labels.shape, batch.predicted.x1.shape[1]
    if runs_unchunked(batch.labels.device):
        return [batch]
    slices = chunk_slices(count_pairs_per_image(ranges, images, slots).tolist(), PAIRS_PER_CHUNK)
    edges = torch.searchsorted(ranges.slot, ranges.slot.new_tensor([part.stop * slots for part in slices])).tolist()
    chunks, start = [], 0
    for part, end in zip(slices, edges, strict=True):
        slot, begin, length = (field[start:end] for field in ranges)
        chunk_ranges = IndexRanges(slot - part.start * slots, begin - part.start * anchors, length)
        predicted, truth = (boxes.apply(itemgetter(part)) for boxes in (batch.predicted, batch.truth))
        chunks.append(ImageChunk(chunk_ranges, batch.scores.of_images(part), predicted, truth, batch.labels[part]))
        start = end
    return chunks


def _assign_chunk(chunk: ImageChunk, params: AssignerParams) -> Assignment:
    images, slots = chunk.labels.shape
    anchors = chunk.predicted.x1.shape[1]
    candidates = _find_candidates(chunk, params)
    pairs, metric = candidates.pairs, candidates.metric
    chosen = segment_topk(metric, pairs.slot, candidates.per_slot, params.topk)
    # One anchor more, for a graph's dummy entry.
    assigned = _resolve_conflicts(candidates, chosen, images * anchors + 1)
    if params.topk2 is not None:
        assigned_metric, slot = metric.index_select(0, assigned), pairs.slot.index_select(0, assigned)
        count = segment_sum(slot, torch.ones_like(slot), images * slots)
        kept = segment_topk(assigned_metric, slot, count, params.topk2)
        assigned = assigned.index_select(0, kept)
    return _normalize_scores(candidates, assigned, (images, slots, anchors), params.eps)


def _find_candidates(chunk: ImageChunk, params: AssignerParams) -> Candidates:
    pairs = expand_ranges(chunk.ranges)
    per_slot = segment_sum(chunk.ranges.slot, chunk.ranges.length, chunk.labels.shape[0] * chunk.labels.shape[1])
    iou = iou_of_pairs(chunk.truth, chunk.predicted, pairs, per_slot)
    if params.beta > 0:
        # A pair without overlap has metric 0: it is never chosen, and it wins no anchor from a pair that is.
        overlaps = keep_dummy(iou > 0)
        per_slot = segment_count_true(overlaps, per_slot)
        overlapping = true_indices(overlaps)
        iou = iou.index_select(0, overlapping)
        pairs = CandidatePairs(*(field.index_select(0, overlapping) for field in pairs))
    iou, metric = _metric_of_pairs(chunk.scores, chunk.labels, pairs, per_slot, iou, params)
    return Candidates(_move_dummy_aside(pairs, chunk.predicted.x1.numel()), iou, metric, per_slot)


@kernel
def iou_of_pairs(truth: BoxGeometry, predicted: BoxGeometry, pairs: CandidatePairs, per_slot: Tensor) -> Tensor:
    """CIoU of each pair (P,), not clamped."""
    return ciou_of_geometry(
        truth.apply(lambda field: repeat(field.flatten(), pairs.slot, per_slot)),
        predicted.apply(lambda field: field.flatten().index_select(0, pairs.anchor)),
    )


@kernel
def _metric_of_pairs(
    scores: ClassScores, labels: Tensor, pairs: CandidatePairs, per_slot: Tensor, iou: Tensor, params: AssignerParams
) -> tuple[Tensor, Tensor]:
    """``iou_and_metric`` of each pair."""
    return iou_and_metric(scores.of_pairs(labels, pairs.slot, pairs.anchor, per_slot), iou, params)


def iou_and_metric(scores: Tensor, iou: Tensor, params: AssignerParams) -> tuple[Tensor, Tensor]:
    """IoU u and metric t = s^alpha * u^beta, (P,) each, from scores and CIoU; NaN and values not above 0 become 0."""
    iou = torch.where(iou > 0, iou, 0.0)
    metric = power(scores, params.alpha) * power(iou, params.beta)
    return iou, torch.where(metric > 0, metric, 0.0)


def _move_dummy_aside(pairs: CandidatePairs, anchors: int) -> CandidatePairs:
    """Give a graph's dummy entry, the last pair, the anchor B * A, which does not exist."""
    if not torch.compiler.is_exporting():
        return pairs
    aside = torch.zeros_like(pairs.anchor[-1:]) + anchors
    return pairs._replace(anchor=torch.cat((pairs.anchor[:-1], aside)))


def _resolve_conflicts(candidates: Candidates, chosen: Tensor, anchors: int) -> Tensor:
    """Assign an anchor chosen by several to the largest IoU among all whose candidate it is; ties: smallest slot.

    Args:
        candidates: (P,) each.
        chosen: (N,) indices into ``candidates``.
        anchors: Upper bound of the anchors' indices, B * A or more.

    Returns:
        Indices of the assigned pairs, ascending, each anchor at most once; in a graph the dummy entry twice.
    """
    iou, anchor = candidates.iou, candidates.pairs.anchor
    chosen_anchor = anchor.index_select(0, chosen)
    contested = segment_sum(chosen_anchor, torch.ones_like(chosen_anchor), anchors) > 1  # (B * A,)
    rivals = true_indices(keep_dummy(contested.index_select(0, anchor)))
    rival_anchor, rival_iou = anchor.index_select(0, rivals), iou.index_select(0, rivals)
    largest = iou.new_full((anchors,), -1.0).scatter_reduce(0, rival_anchor, rival_iou, "amax")
    leading = true_indices(rival_iou == largest.index_select(0, rival_anchor))
    # Pairs are ordered by slot, so the smallest index is the smallest slot.
    leader, none = rivals.index_select(0, leading), iou.shape[0]
    leader_anchor = rival_anchor.index_select(0, leading)
    winner = leader.new_full((anchors,), none).scatter_reduce(0, leader_anchor, leader, "amin")
    uncontested = true_indices(~contested.index_select(0, chosen_anchor))
    won = true_indices(winner < none)
    return torch.cat((chosen.index_select(0, uncontested), winner.index_select(0, won))).sort().values


def _normalize_scores(candidates: Candidates, assigned: Tensor, shape: tuple[int, int, int], eps: float) -> Assignment:
    """Compute the normalized alignment score of each assigned anchor, t * max_u / (max_t + eps), multiplying first.

    Args:
        candidates: (P,) each.
        assigned: (N,) indices into ``candidates``, each anchor at most once.
        shape: B, M, A.
        eps: Keeps the quotient finite.

    Returns:
        The assignment in compact form.
    """
    images, slots, anchors = shape
    slot, anchor, iou, metric = (
        field.index_select(0, assigned) for field in (*candidates.pairs, candidates.iou, candidates.metric)
    )
    zeros = metric.new_zeros(images * slots)
    max_metric = zeros.scatter_reduce(0, slot, metric, "amax").index_select(0, slot)
    max_iou = zeros.scatter_reduce(0, slot, iou, "amax").index_select(0, slot)
    weight = metric * max_iou / (max_metric + eps)

    total = images * anchors
    background = anchor.new_zeros(total + 1)
    gt_idx = background.index_put((anchor,), slot - torch.div(slot, slots, rounding_mode="floor") * slots)
    weights = weight.new_zeros(total + 1).index_put((anchor,), weight)
    fg_mask = background.bool().index_put((anchor,), torch.ones_like(anchor, dtype=torch.bool))
    return Assignment(*(field[:total].view(images, anchors) for field in (fg_mask, gt_idx, weights)))

"""The assignment once more, with every decision kept: sections 5 and 9 of the mathematics, pair by pair.

It is written from lists of pairs with flags, where ``yolo_loss.assignment.sparse`` shortens its lists from step to
step; the results are equal to the bit. Time is O(P log P), memory O(P).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.anchor_grid import candidate_ranges, expand_ranges
from yolo_loss.assignment.params import AssignerParams, enlarge
from yolo_loss.assignment.segment_ops import segment_sum
from yolo_loss.assignment.sparse import iou_and_metric, iou_of_pairs
from yolo_loss.boxes import box_geometry
from yolo_loss.execution.channels import ClassScores
from yolo_loss.explain.reasons import Outcome
from yolo_loss.structures import Assignment, GroundTruth


class Sizes(NamedTuple):
    """B, M with the empty slot that is added to every image, and A."""

    images: int
    slots: int
    anchors: int

    @property
    def segments(self) -> int:
        """All slots of all images."""
        return self.images * self.slots


class Candidates(NamedTuple):
    """Candidate pairs, (P,) each, ordered by ground truth, then by anchor.

    In a graph the last pair is a dummy of the last empty slot, with metric 0.

    Attributes:
        slot: int64, b * M + m.
        anchor: int64, b * A + a; B * A for the dummy.
        iou: u.
        score: s.
        metric: t.
    """

    slot: Tensor
    anchor: Tensor
    iou: Tensor
    score: Tensor
    metric: Tensor


class Decisions(NamedTuple):
    """What was decided about each candidate, (P,) each.

    Attributes:
        rank: int64, place among the slot's candidates by metric, from 1.
        chosen: bool, entered the top k.
        owned: bool, won its anchor in step 4.
        assigned: bool, kept it in the end.
        rival: int64, slot b * M + m that took the anchor of a chosen pair; -1: none did.
        weight: Normalized alignment score; 0 unless assigned.
    """

    rank: Tensor
    chosen: Tensor
    owned: Tensor
    assigned: Tensor
    rival: Tensor
    weight: Tensor

    @property
    def lost(self) -> Tensor:
        """Chosen, but taken by another, bool."""
        return self.chosen & ~self.owned

    @property
    def outcome(self) -> Tensor:
        """An ``Outcome``, int64."""
        outcome = torch.full_like(self.rank, int(Outcome.BELOW_TOPK))
        outcome = torch.where(self.lost, int(Outcome.LOST_TO), outcome)
        outcome = torch.where(self.owned, int(Outcome.DROPPED_BY_TOPK2), outcome)
        return torch.where(self.assigned, int(Outcome.ASSIGNED), outcome)


def measure_candidates(
    scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth, params: AssignerParams
) -> Candidates:
    """Find the candidate pairs and measure u, s and t of each.

    Args:
        scores: Class scores of all anchors.
        pd_bboxes: (B, A, 4) predicted boxes, pixel xyxy.
        anc_points: (A, 2) pixels.
        ground_truth: Padded, the last slot of each image empty.
        params: Hyper-parameters.
    """
    boxes, valid = ground_truth.gt_bboxes, ground_truth.mask_gt.squeeze(-1)
    ranges = candidate_ranges(anc_points, enlarge(boxes, params.min_box_side), valid, params.eps)
    pairs, labels = expand_ranges(ranges), ground_truth.gt_labels.squeeze(-1).clamp(min=0)
    per_slot = segment_sum(ranges.slot, ranges.length, labels.numel())
    truth, predicted = (box_geometry([side.contiguous() for side in b.unbind(-1)]) for b in (boxes, pd_bboxes))
    iou = iou_of_pairs(truth, predicted, pairs, per_slot)
    score = scores.of_pairs(labels, pairs.slot, pairs.anchor, per_slot)
    iou, metric = iou_and_metric(score, iou, params)
    return _set_dummy_aside(Candidates(*pairs, iou, score, metric), pd_bboxes.shape[0] * pd_bboxes.shape[1])


def _set_dummy_aside(candidates: Candidates, anchors: int) -> Candidates:
    """Give a graph's dummy entry, the last pair, metric 0 and the anchor B * A, which does not exist."""
    if not torch.compiler.is_exporting():
        return candidates
    last = candidates.anchor[-1:]
    anchor = torch.cat((candidates.anchor[:-1], torch.zeros_like(last) + anchors))
    metric = torch.cat((candidates.metric[:-1], torch.zeros_like(candidates.metric[-1:])))
    return candidates._replace(anchor=anchor, metric=metric)


def decide(candidates: Candidates, sizes: Sizes, params: AssignerParams) -> Decisions:
    """Choose, resolve conflicts and weigh.

    Args:
        candidates: As measured.
        sizes: B, M, A.
        params: Hyper-parameters.
    """
    slot, metric = candidates.slot, candidates.metric
    order = order_by_metric(candidates)
    rank = count_in_order(torch.ones_like(slot, dtype=torch.bool), order, slot, sizes.segments)
    chosen = (rank <= params.topk) & (metric > 0)
    winner = find_winners(candidates, sizes)
    # The pair that wins each pair's anchor; pairs are ordered by slot, so that of the smallest slot among equals.
    index = torch.arange(slot.shape[0], device=slot.device)
    takers = segment_sum(candidates.anchor, chosen.long(), winner.shape[0]).index_select(0, candidates.anchor)
    best = winner.index_select(0, candidates.anchor)
    owned = (chosen & (takers == 1)) | ((takers > 1) & (best == index))
    assigned = owned
    if params.topk2 is not None:
        place = count_in_order(owned & (metric > 0), order, slot, sizes.segments)
        assigned = owned & (metric > 0) & (place <= params.topk2)
    rival = torch.where(chosen & ~owned, slot.index_select(0, best), -1)
    weight = normalized_scores(candidates, assigned, sizes.segments, params.eps)
    return Decisions(rank, chosen, owned, assigned, rival, weight)


def order_by_metric(candidates: Candidates) -> Tensor:
    """Indices of the pairs, slot by slot, by falling metric, among equal ones by the anchor, (P,) int64."""
    slot = candidates.slot
    by_metric = candidates.metric.sort(descending=True, stable=True).indices
    position = torch.zeros_like(slot).scatter(0, by_metric, torch.arange(slot.shape[0], device=slot.device))
    # Every key is another number, so that no runtime has a tie to break.
    return (slot * slot.shape[0] + position).sort().indices


def count_in_order(flags: Tensor, order: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Count the true flags of each segment, in an order, up to and including each entry.

    Args:
        flags: (P,) bool.
        order: (P,) int64, indices segment by segment.
        segment: (P,) int64, of each entry, ascending.
        segments: Number of segments.

    Returns:
        (P,) int64.
    """
    running = flags.index_select(0, order).long().cumsum(0)
    per_segment = segment_sum(segment, flags.long(), segments)
    before = per_segment.cumsum(0) - per_segment
    # In order or not, the segments of the entries are the same list.
    return torch.zeros_like(segment).scatter(0, order, running - before.index_select(0, segment))


def find_winners(candidates: Candidates, sizes: Sizes) -> Tensor:
    """The pair with the largest IoU at each anchor, among equal ones that of the smallest slot.

    Returns:
        (B * A + 1,) int64 indices of pairs; P where an anchor is nobody's candidate.
    """
    return first_largest(candidates.iou, candidates.anchor, sizes.images * sizes.anchors + 1)


def first_largest(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """The first of the largest values of each segment.

    Args:
        values: (P,) not negative.
        segment: (P,) int64, in any order.
        segments: G.

    Returns:
        (G,) int64 indices; P for a segment without values.
    """
    count = values.shape[0]
    largest = values.new_zeros(segments).scatter_reduce(0, segment, values, "amax").index_select(0, segment)
    index = torch.arange(count, device=values.device)
    leading = torch.where(values == largest, index, count)
    return torch.full((segments,), count, device=values.device).scatter_reduce(0, segment, leading, "amin")


def normalized_scores(candidates: Candidates, assigned: Tensor, segments: int, eps: float) -> Tensor:
    """Step 5: t * max_u / (max_t + eps) over the assigned pairs of each slot, multiplying first; (P,)."""
    slot, zeros = candidates.slot, candidates.metric.new_zeros(segments)
    metric = torch.where(assigned, candidates.metric, 0.0)
    iou = torch.where(assigned, candidates.iou, 0.0)
    max_metric = zeros.scatter_reduce(0, slot, metric, "amax").index_select(0, slot)
    max_iou = zeros.scatter_reduce(0, slot, iou, "amax").index_select(0, slot)
    return torch.where(assigned, metric * max_iou / (max_metric + eps), 0.0)


def assignment_of(candidates: Candidates, decisions: Decisions, sizes: Sizes) -> Assignment:
    """The assignment in compact form; each anchor has at most one assigned pair."""
    total = sizes.images * sizes.anchors
    image = torch.div(candidates.slot, sizes.slots, rounding_mode="floor")
    # What is not assigned is written beside the anchors that exist.
    place = torch.where(decisions.assigned, candidates.anchor, total)
    background = candidates.anchor.new_zeros(total + 1)
    gt_idx = background.scatter(0, place, torch.where(decisions.assigned, candidates.slot - image * sizes.slots, 0))
    weights = decisions.weight.new_zeros(total + 1).scatter(0, place, decisions.weight)
    foreground = background.scatter(0, place, decisions.assigned.long()) > 0
    shape = (sizes.images, sizes.anchors)
    return Assignment(*(field[:total].view(shape) for field in (foreground, gt_idx, weights)))

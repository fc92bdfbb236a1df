"""From decisions about pairs to what became of each ground truth: section 9 of the mathematics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.segment_ops import segment_sum
from yolo_loss.boxes import bbox2dist
from yolo_loss.clipping import longest_distance
from yolo_loss.explain.candidates import Candidates, Decisions, Sizes, first_largest
from yolo_loss.explain.duplicates import find_duplicates
from yolo_loss.explain.nearest import find_nearest
from yolo_loss.explain.reasons import WEAK_SHARE, Reason
from yolo_loss.explain.structures import PairReport, TruthReport
from yolo_loss.structures import GroundTruth

SIDES = 4


class Scene(NamedTuple):
    """What surrounds the assignment.

    Attributes:
        ground_truth: Padded, the last slot of each image empty.
        anc_points: (A, 2) pixels.
        strides: (A, 1) pixels per cell of each anchor's level; None: unknown.
        level: (A,) int64, level of each anchor.
        levels: L.
        corner: (2,) width and height of the images in pixels; None: unknown, and no box counts as outside.
        reg_max: R; None: unknown, and no side counts as clipped.
        eps: Of the assignment.
    """

    ground_truth: GroundTruth
    anc_points: Tensor
    strides: Tensor | None
    level: Tensor
    levels: int
    corner: Tensor | None
    reg_max: int | None
    eps: float

    @property
    def sizes(self) -> Sizes:
        """B, M with the empty slot, A."""
        images, slots, _ = self.ground_truth.gt_bboxes.shape
        return Sizes(images, slots, self.anc_points.shape[0])


class _Best(NamedTuple):
    """The largest of a measure among each slot's candidates, (B * M,) each: the value, and the pair's anchor or -1."""

    value: Tensor
    anchor: Tensor


def report_truths(candidates: Candidates, decisions: Decisions, scene: Scene) -> TruthReport:
    """Summarise each ground truth's candidates, (B, M) with the empty slot."""
    sizes, slot = scene.sizes, candidates.slot
    clean_score = torch.where(candidates.score > 0, candidates.score, 0.0)  # without NaN
    measures = (candidates.iou, clean_score, candidates.metric)
    iou, score, metric = (_best(candidates, values, sizes) for values in measures)
    chosen, lost, assigned = (
        segment_sum(slot, flags.long(), sizes.segments)
        for flags in (decisions.chosen, decisions.lost, decisions.assigned)
    )
    per_level = count_per_level(candidates, scene)
    valid, outside = usable(scene.ground_truth).flatten(), is_outside(scene).flatten()
    nearest = find_nearest(scene.anc_points, scene.ground_truth.gt_bboxes.flatten(0, 1), scene.eps)
    without = valid & (per_level.sum(dim=1) == 0)
    reason = torch.full_like(chosen, int(Reason.CONTESTED))
    for holds, value in (
        (metric.value <= 0, Reason.NO_SCORE),
        # With beta = 0 a pair without overlap can be chosen.
        ((iou.value <= 0) & (metric.value <= 0), Reason.NO_OVERLAP),
        (per_level.sum(dim=1) == 0, Reason.NO_ANCHOR),
        (outside, Reason.OUTSIDE),
        (~valid, Reason.INVALID),
        (assigned > 0, Reason.ASSIGNED),
    ):
        reason = torch.where(holds, int(value), reason)
    weight_sum = segment_sum(slot, decisions.weight, sizes.segments)
    shape = (sizes.images, sizes.slots)
    return TruthReport(
        reason=reason.view(shape),
        num_candidates=per_level.view(*shape, scene.levels),
        num_chosen=chosen.view(shape),
        num_lost=lost.view(shape),
        lost_to=find_main_rival(candidates, decisions, sizes).view(shape),
        num_assigned=assigned.view(shape),
        weight_sum=weight_sum.view(shape),
        best_iou=iou.value.view(shape),
        best_iou_anchor=iou.anchor.view(shape),
        best_score=score.value.view(shape),
        best_score_anchor=score.anchor.view(shape),
        best_metric=metric.value.view(shape),
        best_metric_anchor=metric.anchor.view(shape),
        nearest_distance=torch.where(without, nearest.distance, 0.0).view(shape),
        helping_side=torch.where(without, nearest.helping_side, 0.0).view(shape),
        clipped_share=clipped_share(candidates, decisions, scene).view(shape),
        duplicate_of=find_duplicates(scene.ground_truth.gt_bboxes, usable(scene.ground_truth)),
        weak=find_weak(weight_sum.view(shape), assigned.view(shape) > 0),
    )


def report_pairs(candidates: Candidates, decisions: Decisions, scene: Scene) -> PairReport:
    """Number slots and anchors in their images; without a graph's dummy entry."""
    sizes = scene.sizes
    image = torch.div(candidates.slot, sizes.slots, rounding_mode="floor")
    anchor = candidates.anchor - image * sizes.anchors
    outcome = decisions.outcome
    # `rival` is -1 where there is none, and a slot of the same image elsewhere.
    lost_to = torch.where(decisions.lost, decisions.rival - image * sizes.slots, -1)
    report = PairReport(
        image,
        candidates.slot - image * sizes.slots,
        anchor,
        level_of(candidates, scene),
        candidates.iou,
        candidates.score,
        candidates.metric,
        decisions.rank,
        outcome,
        lost_to,
        decisions.weight,
    )
    return PairReport(*(field[:-1] for field in report)) if torch.compiler.is_exporting() else report


def usable(ground_truth: GroundTruth) -> Tensor:
    """Whether each slot is valid and its box has an area, (B, M) bool."""
    boxes = ground_truth.gt_bboxes
    side = boxes[..., 2:] - boxes[..., :2]
    # NaN compares as False; a difference of infinities is not below infinity either.
    fine = (side > 0) & (side < torch.inf)
    return ground_truth.mask_gt.squeeze(-1) & fine[..., 0] & fine[..., 1]


def is_outside(scene: Scene) -> Tensor:
    """Whether no part of each box lies in the image, (B, M) bool."""
    x1, y1, x2, y2 = scene.ground_truth.gt_bboxes.unbind(-1)
    if scene.corner is None:
        return torch.zeros_like(x1, dtype=torch.bool)
    return (x2 <= 0) | (y2 <= 0) | (x1 >= scene.corner[0]) | (y1 >= scene.corner[1])


def level_of(candidates: Candidates, scene: Scene) -> Tensor:
    """Level of each pair, (P,) int64."""
    sizes = scene.sizes
    image = torch.div(candidates.slot, sizes.slots, rounding_mode="floor")
    anchor = (candidates.anchor - image * sizes.anchors).clamp(max=sizes.anchors - 1)
    return scene.level.index_select(0, anchor)


def count_per_level(candidates: Candidates, scene: Scene) -> Tensor:
    """Candidates of each slot by level, (B * M, L) int64."""
    place = candidates.slot * scene.levels + level_of(candidates, scene)
    counts = segment_sum(place, torch.ones_like(place), scene.sizes.segments * scene.levels)
    return counts.view(-1, scene.levels)


def find_main_rival(candidates: Candidates, decisions: Decisions, sizes: Sizes) -> Tensor:
    """The slot that took most of each slot's chosen anchors, among equal ones the smallest; -1 without; (B * M,)."""
    slot, slots, lost = candidates.slot, sizes.slots, decisions.lost
    image = torch.div(slot, slots, rounding_mode="floor")
    rival = decisions.rival - image * slots
    # One number for each pair of loser and winner; pairs that lost nothing come last.
    key = torch.where(lost, slot * slots + rival, sizes.segments * slots)
    key = key.sort().values
    index = torch.arange(key.shape[0], device=key.device)
    begins = (key != key.index_select(0, (index - 1).clamp(min=0))) | (index == 0)
    run = begins.long().cumsum(0) - 1
    count = segment_sum(run, torch.ones_like(run), key.shape[0]).index_select(0, run)
    loser = torch.div(key, slots, rounding_mode="floor")
    # The larger count first, then the smaller slot.
    vote = count * slots + (slots - 1 - (key - loser * slots))
    most = vote.new_full((sizes.segments + 1,), -1).scatter_reduce(0, loser, vote, "amax")[: sizes.segments]
    winner = slots - 1 - (most - torch.div(most.clamp(min=0), slots, rounding_mode="floor") * slots)
    return torch.where(most >= 0, winner, -1)


def clipped_share(candidates: Candidates, decisions: Decisions, scene: Scene) -> Tensor:
    """Share of the sides of each slot's anchors that are beyond the last bin, (B * M,)."""
    sizes, slot = scene.sizes, candidates.slot
    assigned = segment_sum(slot, decisions.assigned.long(), sizes.segments)
    if scene.reg_max is None or scene.reg_max == 1 or scene.strides is None:
        return candidates.iou.new_zeros(sizes.segments)
    image = torch.div(slot, sizes.slots, rounding_mode="floor")
    anchor = (candidates.anchor - image * sizes.anchors).clamp(max=sizes.anchors - 1)
    stride = scene.strides.index_select(0, anchor)  # (P, 1)
    target = scene.ground_truth.gt_bboxes.flatten(0, 1).index_select(0, slot) / stride
    distance = bbox2dist(scene.anc_points.index_select(0, anchor) / stride, target)  # (P, 4)
    beyond = (distance > longest_distance(scene.reg_max)).long().sum(dim=1)
    clipped = segment_sum(slot, torch.where(decisions.assigned, beyond, 0), sizes.segments)
    dtype = candidates.iou.dtype
    return clipped.to(dtype) / (assigned * SIDES).clamp(min=1).to(dtype)


def find_weak(weight_sum: Tensor, assigned: Tensor) -> Tensor:
    """Whether each ground truth's sum of weights is far below the median of its image's.

    Args:
        weight_sum: (B, M).
        assigned: (B, M) bool, those with anchors; the others neither count nor are weak.

    Returns:
        (B, M) bool.
    """
    ordered = torch.where(assigned, weight_sum, torch.inf).sort(dim=1).values
    count = assigned.long().sum(dim=1, keepdim=True)  # (B, 1)
    middle = torch.cat(((count - 1) // 2, count // 2), dim=1).clamp(min=0)
    # The mean of both middle ones where the count is even.
    median = ordered.gather(1, middle).mean(dim=1, keepdim=True)
    return assigned & (weight_sum < WEAK_SHARE * median)


def _best(candidates: Candidates, values: Tensor, sizes: Sizes) -> _Best:
    first = first_largest(values, candidates.slot, sizes.segments)
    value = torch.cat((values, values.new_zeros(1))).index_select(0, first)
    image = torch.div(candidates.slot, sizes.slots, rounding_mode="floor")
    anchor = torch.cat((candidates.anchor - image * sizes.anchors, image.new_zeros(1))).index_select(0, first)
    return _Best(value, torch.where(value > 0, anchor, -1))

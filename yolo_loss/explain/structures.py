"""What an explanation consists of. Field names are the exported model's tensor names.

B images, M ground-truth slots, A anchors, L levels, P candidate pairs. Slots and anchors are counted in their image,
from 0. Floats have the dtype that the assignment is computed in, float32 or float64.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from yolo_loss.structures import Assignment, GroundTruth


class TruthReport(NamedTuple):
    """What became of each ground truth, (B, M) unless said otherwise. Padding is ``INVALID``, with zeros.

    Attributes:
        reason: int64, a ``Reason``.
        num_candidates: (B, M, L) int64, anchors of each level whose centre lies inside the (enlarged) box.
        num_chosen: int64, candidates that entered the top k.
        num_lost: int64, how many of these another ground truth took.
        lost_to: int64, slot of the ground truth that took most of them, the smallest of several; -1: none were taken.
        num_assigned: int64, anchors that it has in the end.
        weight_sum: Sum of their normalized alignment scores.
        best_iou: The largest u among the candidates; 0 without any.
        best_iou_anchor: int64, the anchor of that candidate, the smallest of several; -1 where ``best_iou`` is 0.
        best_score: The largest s, and ``best_score_anchor`` its anchor.
        best_score_anchor: As above.
        best_metric: The largest t, and ``best_metric_anchor`` its anchor.
        best_metric_anchor: As above.
        nearest_distance: Pixels from the box to the nearest anchor's centre; 0 where one lies in it, and on invalid
            boxes.
        helping_side: The smallest whole number of pixels that gives the box a candidate as ``min_box_side``; 0 where
            it has some or is invalid.
        clipped_share: Share of the four sides of all its anchors whose target distance is beyond R - 1 - 0.01 grid
            units; 0 with R = 1, which has no such limit.
        duplicate_of: int64, slot of the valid ground truth with the largest IoU above 0.95, of any class, the
            smallest of several; -1: none.
        weak: bool, has anchors, but ``weight_sum`` is below 0.1 of the median over the image's ground truths that
            have some.
    """

    reason: Tensor
    num_candidates: Tensor
    num_chosen: Tensor
    num_lost: Tensor
    lost_to: Tensor
    num_assigned: Tensor
    weight_sum: Tensor
    best_iou: Tensor
    best_iou_anchor: Tensor
    best_score: Tensor
    best_score_anchor: Tensor
    best_metric: Tensor
    best_metric_anchor: Tensor
    nearest_distance: Tensor
    helping_side: Tensor
    clipped_share: Tensor
    duplicate_of: Tensor
    weak: Tensor


class PairReport(NamedTuple):
    """What became of each candidate pair, (P,) each, ordered by image, ground truth and anchor.

    Attributes:
        pair_image: int64, b.
        pair_slot: int64, m.
        pair_anchor: int64, a.
        pair_level: int64.
        pair_iou: u, not below 0.
        pair_score: s, the probability of the ground truth's class.
        pair_metric: t.
        pair_rank: int64, place among the ground truth's candidates by t, from 1; among equal ones by the anchor.
        pair_outcome: int64, an ``Outcome``.
        pair_lost_to: int64, slot of the ground truth that took the anchor; -1 unless the outcome is ``LOST_TO``.
        pair_weight: Normalized alignment score; 0 unless the outcome is ``ASSIGNED``.
    """

    pair_image: Tensor
    pair_slot: Tensor
    pair_anchor: Tensor
    pair_level: Tensor
    pair_iou: Tensor
    pair_score: Tensor
    pair_metric: Tensor
    pair_rank: Tensor
    pair_outcome: Tensor
    pair_lost_to: Tensor
    pair_weight: Tensor


class LossShares(NamedTuple):
    """The loss, divided among ground truths and background.

    A ground truth's part of the class loss is that of its class at its anchors; all other elements are background.

    Attributes:
        loss: () as ``DetectionLoss`` gives it.
        loss_items: (3,) box, cls, dfl or l1, with gains.
        image_sums: (B, 4) per image, without gains, not normalised: box, cls, dfl or l1, and target-score sums.
        truth_sums: (B, M, 3) box, cls, dfl or l1 of each ground truth, likewise.
        background_sums: (B,) cls of everything else; with the sum over M it is ``image_sums[:, 1]``.
        truth_loss: (B, M) part of ``loss`` of each ground truth.
        background_loss: (B,) part of ``loss`` of everything else; all parts add up to ``loss``.
    """

    loss: Tensor
    loss_items: Tensor
    image_sums: Tensor
    truth_sums: Tensor
    background_sums: Tensor
    truth_loss: Tensor
    background_loss: Tensor


class Explanation(NamedTuple):
    """Why each ground truth of a batch is learned or not.

    Attributes:
        truths: What became of each ground truth.
        pairs: What became of each candidate.
        assignment: The assignment that follows from the pairs, equal to the assigner's to the bit.
        ground_truth: As it was assigned.
        shares: The loss by ground truth; None where only the assignment was explained.
    """

    truths: TruthReport
    pairs: PairReport
    assignment: Assignment
    ground_truth: GroundTruth
    shares: LossShares | None = None

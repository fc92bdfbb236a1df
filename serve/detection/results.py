"""Ground truth, losses and targets as NamedTuples of numpy arrays; field names are the exported models' tensor names.

Imports only numpy: the client needs it without the server's packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
COMPACT = ("fg_mask", "target_gt_idx", "target_weights")  # the outputs from which the others follow
NUM_SUMS = 4  # box, cls, dfl or l1, target scores


class GroundTruth(NamedTuple):
    """Padded ground truth of a batch.

    Attributes:
        gt_labels: (B, M, 1) int64.
        gt_bboxes: (B, M, 4) float32, pixel xyxy.
        mask_gt: (B, M, 1) bool, False on padding.
    """

    gt_labels: Array
    gt_bboxes: Array
    mask_gt: Array


class LossResult(NamedTuple):
    """The loss, and the targets that were requested.

    Attributes:
        loss: () float32, the sum of the three terms, times B.
        loss_items: (3,) float32: box, cls, dfl (l1 with reg_max 1) with their gains, before times B.
        image_sums: (B, 4) float32, without gains, not normalised: box, cls, dfl or l1, and target-score sums.
        target_labels: (B, A) int64, or None.
        target_bboxes: (B, A, 4) float32, pixel xyxy, or None.
        target_scores: (B, A, C) float32, or None.
        fg_mask: (B, A) bool, or None.
        target_gt_idx: (B, A) int64, or None.
        target_weights: (B, A) float32, or None.
    """

    loss: Array
    loss_items: Array
    image_sums: Array
    target_labels: Array | None = None
    target_bboxes: Array | None = None
    target_scores: Array | None = None
    fg_mask: Array | None = None
    target_gt_idx: Array | None = None
    target_weights: Array | None = None


class LossAndGradients(NamedTuple):
    """The loss and its gradients.

    Attributes:
        result: The loss.
        gradients: Gradient of ``loss`` by each map, in the map's shape, float32.
    """

    result: LossResult
    gradients: list[Array]


class AssignmentResult(NamedTuple):
    """The assigner's five outputs, in the order users of YOLO code unpack them.

    Attributes:
        target_labels: (B, A) int64.
        target_bboxes: (B, A, 4) float32, pixel xyxy.
        target_scores: (B, A, C) float32.
        fg_mask: (B, A) bool.
        target_gt_idx: (B, A) int64.
    """

    target_labels: Array
    target_bboxes: Array
    target_scores: Array
    fg_mask: Array
    target_gt_idx: Array


def complete_targets(
    gt_labels: Array, gt_bboxes: Array, fg_mask: Array, target_gt_idx: Array, target_weights: Array, num_classes: int
) -> AssignmentResult:
    """Rebuild the assigner's five outputs from three small ones, equal to the bit to those of the model.

    Args:
        gt_labels: (B, M, 1) int64, as sent.
        gt_bboxes: (B, M, 4) float32, as sent.
        fg_mask: (B, A) bool.
        target_gt_idx: (B, A) int64.
        target_weights: (B, A) float32.
        num_classes: C.

    Returns:
        Background anchors have the label and box of slot 0; without any slot, label C and a box of zeros.
    """
    (images, anchors), slots = fg_mask.shape, gt_labels.shape[1]
    scores = np.zeros((images, anchors, num_classes), np.float32)
    if not slots:
        labels, bboxes = np.full(fg_mask.shape, num_classes, np.int64), np.zeros((images, anchors, 4), np.float32)
        return AssignmentResult(labels, bboxes, scores, fg_mask, target_gt_idx)
    # One index in place of two or three: numpy looks up and writes several times as fast.
    truth = np.where(fg_mask, target_gt_idx, 0) + slots * np.arange(images)[:, None]
    labels, bboxes = gt_labels.clip(min=0).reshape(-1).take(truth), gt_bboxes.reshape(-1, 4).take(truth, axis=0)
    place = np.flatnonzero(fg_mask)
    scores.reshape(-1)[place * num_classes + labels.reshape(-1)[place]] = target_weights.reshape(-1)[place]
    return AssignmentResult(labels, bboxes, scores, fg_mask, target_gt_idx)


class Explanation(NamedTuple):
    """Why each ground truth is learned or not, and the loss by ground truth; ``yolo_loss.explain`` defines the fields.

    L levels, P candidate pairs. Slots and anchors are counted in their image; -1 is none.

    Attributes:
        loss: () float32, as in ``LossResult``.
        loss_items: (3,) float32.
        image_sums: (B, 4) float32.
        truth_sums: (B, M, 3) float32, without gains, not normalised: box, cls and dfl sums of each ground truth.
        background_sums: (B,) float32, cls sum of everything else.
        truth_loss: (B, M) float32, part of ``loss`` of each ground truth.
        background_loss: (B,) float32, part of ``loss`` of everything else.
        reason: (B, M) int64, a ``yolo_loss.explain.Reason``.
        num_candidates: (B, M, L) int64.
        num_chosen: (B, M) int64, candidates that entered the top k.
        num_lost: (B, M) int64, how many of these another ground truth took.
        lost_to: (B, M) int64, slot of the one that took most.
        num_assigned: (B, M) int64, anchors.
        weight_sum: (B, M) float32, sum of their normalized alignment scores.
        best_iou: (B, M) float32, the largest among the candidates.
        best_iou_anchor: (B, M) int64, its anchor.
        best_score: (B, M) float32, likewise.
        best_score_anchor: (B, M) int64.
        best_metric: (B, M) float32, likewise.
        best_metric_anchor: (B, M) int64.
        nearest_distance: (B, M) float32, pixels to the nearest anchor's centre.
        helping_side: (B, M) float32, the smallest whole ``min_box_side`` that gives a candidate.
        clipped_share: (B, M) float32, share of sides that the head cannot express.
        duplicate_of: (B, M) int64, slot of a ground truth in the same place.
        weak: (B, M) bool.
        pair_image: (P,) int64.
        pair_slot: (P,) int64.
        pair_anchor: (P,) int64.
        pair_level: (P,) int64.
        pair_iou: (P,) float32.
        pair_score: (P,) float32.
        pair_metric: (P,) float32.
        pair_rank: (P,) int64, from 1.
        pair_outcome: (P,) int64, a ``yolo_loss.explain.Outcome``.
        pair_lost_to: (P,) int64.
        pair_weight: (P,) float32.
    """

    loss: Array
    loss_items: Array
    image_sums: Array
    truth_sums: Array
    background_sums: Array
    truth_loss: Array
    background_loss: Array
    reason: Array
    num_candidates: Array
    num_chosen: Array
    num_lost: Array
    lost_to: Array
    num_assigned: Array
    weight_sum: Array
    best_iou: Array
    best_iou_anchor: Array
    best_score: Array
    best_score_anchor: Array
    best_metric: Array
    best_metric_anchor: Array
    nearest_distance: Array
    helping_side: Array
    clipped_share: Array
    duplicate_of: Array
    weak: Array
    pair_image: Array
    pair_slot: Array
    pair_anchor: Array
    pair_level: Array
    pair_iou: Array
    pair_score: Array
    pair_metric: Array
    pair_rank: Array
    pair_outcome: Array
    pair_lost_to: Array
    pair_weight: Array


class Reduced(NamedTuple):
    """The loss of the images of all workers.

    Attributes:
        loss: Sum of the terms, times the number of images.
        loss_items: (3,) box, cls, dfl with their gains, before times the number of images.
        num_images: Number of images of all workers.
        gradient_scales: (W,) factors from the gradients of each worker's own loss to those of this one.
    """

    loss: float
    loss_items: Array
    num_images: int
    gradient_scales: Array


def reduce_sums(workers: Sequence[Array], gains: Sequence[float]) -> Reduced:
    """Compute the loss of one batch that several workers share.

    A worker's own loss divides its images' sums by its own target scores S_w, times its B_w images; the shared loss
    divides by all target scores S, times all B images. So the gradients of the former times (B / S) / (B_w / S_w) are
    those of the latter. Target scores have no gradient.

    Args:
        workers: (B_w, 4) box, cls, dfl and target-score sums of each worker's images; B_w may be 0.
        gains: Weights of the three terms.

    Returns:
        Computed in float64. A worker without images has scale 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # overflow gives an infinity or NaN
        sums = [np.asarray(rows, np.float64).reshape(-1, NUM_SUMS) for rows in workers]
        total = np.concatenate([np.zeros((0, NUM_SUMS)), *sums]).sum(axis=0)
        images = sum(len(rows) for rows in sums)
        items = total[:3] / max(total[3], 1.0) * np.asarray(gains, np.float64)
        factor = images / max(total[3], 1.0)
        scales = [factor * max(rows[:, 3].sum(), 1.0) / len(rows) if len(rows) else 0.0 for rows in sums]
    return Reduced(float(items.sum() * images), items, images, np.array(scales, np.float64))

"""What passes across the boundary, in numpy. Field names are the exported models' tensor names.

Imports nothing but numpy: the client needs it without the server's packages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]


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
    """The loss, and those targets that were asked for.

    Attributes:
        loss: () float32, sum of the three terms times B.
        loss_items: (3,) float32: box, cls, dfl with their gains, before times B.
        image_sums: (B, 4) float32, without gains, not normalised: box, cls, dfl and target-score sums.
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
    """The loss with what a backward pass starts from.

    Attributes:
        result: The loss.
        gradients: Of ``loss`` by each map, in the maps' shapes, float32.
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

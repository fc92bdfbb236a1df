"""The assigner's five outputs from the three that hold all that they say: 13 bytes an anchor in place of 37 + 4 C.

Imports nothing but numpy: the client needs it without the server's packages.
"""

from __future__ import annotations

import numpy as np

from yolo_assigner.serve.results import Array, AssignmentResult

COMPACT = ("fg_mask", "target_gt_idx", "target_weights")


def complete_targets(
    gt_labels: Array, gt_bboxes: Array, fg_mask: Array, target_gt_idx: Array, target_weights: Array, num_classes: int
) -> AssignmentResult:
    """What the model itself gives, to the bit.

    Args:
        gt_labels: (B, M, 1) int64, as sent.
        gt_bboxes: (B, M, 4) float32, as sent.
        fg_mask: (B, A) bool.
        target_gt_idx: (B, A) int64.
        target_weights: (B, A) float32.
        num_classes: C.

    Returns:
        Background anchors have label and box of slot 0; without any slot label C and a box of zeros.
    """
    images, slots, _ = gt_labels.shape
    if slots:
        image = np.arange(images)[:, None]
        labels, bboxes = gt_labels[image, target_gt_idx, 0].clip(min=0), gt_bboxes[image, target_gt_idx]
    else:
        labels = np.full(fg_mask.shape, num_classes, np.int64)
        bboxes = np.zeros((*fg_mask.shape, 4), np.float32)
    scores = np.zeros((*fg_mask.shape, num_classes), np.float32)
    place = np.nonzero(fg_mask)
    scores[(*place, labels[place])] = target_weights[place]
    return AssignmentResult(labels, bboxes, scores, fg_mask, target_gt_idx)

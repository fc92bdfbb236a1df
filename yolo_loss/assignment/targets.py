"""Look up the targets that YOLO code expects from an assignment in compact form."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_loss.assignment.segment_ops import true_indices
from yolo_loss.execution.buffers import lazy_zeros
from yolo_loss.execution.transforms import vectorized
from yolo_loss.structures import Assignment, AssignmentResult, GroundTruth


def look_up_targets(assignment: Assignment, ground_truth: GroundTruth, num_classes: int) -> AssignmentResult:
    """Look up labels, boxes and dense scores.

    Args:
        assignment: The assignment, each field (B, A).
        ground_truth: Its ground truth; M may be 0.
        num_classes: C.

    Returns:
        The five targets.
    """
    weights = assignment.target_weights
    # Written into zeros: comparing every label with every class takes longer.
    scores = lazy_zeros((*weights.shape, num_classes), weights)
    if ground_truth.gt_labels.shape[1] == 0:
        labels = torch.full_like(assignment.target_gt_idx, num_classes)
        boxes = weights.new_zeros((*weights.shape, 4))
        return AssignmentResult(labels, boxes, scores, assignment.fg_mask, assignment.target_gt_idx)
    labels, boxes = labels_and_boxes(assignment, ground_truth)
    if vectorized():
        scores = scores_by_scatter(labels, weights, num_classes)
    elif scores.device.type == "cpu":
        # Only the foreground: writing the background's zeros would touch every page of memory.
        index = true_indices(assignment.fg_mask.flatten())
        place = index * num_classes + labels.flatten().index_select(0, index)
        scores.view(-1).index_copy_(0, place, weights.flatten().index_select(0, index))
    else:
        # Listing the foreground would synchronise with the GPU to learn its length.
        scores.scatter_(2, labels.unsqueeze(-1), weights.unsqueeze(-1))
    return AssignmentResult(labels, boxes, scores, assignment.fg_mask, assignment.target_gt_idx)


def labels_and_boxes(assignment: Assignment, ground_truth: GroundTruth) -> tuple[Tensor, Tensor]:
    """Look up class and box of each anchor's ground truth; background anchors get those of slot 0.

    Returns:
        Labels (B, A) int64 and boxes (B, A, 4).
    """
    images, slots, _ = ground_truth.gt_labels.shape
    shape = assignment.target_gt_idx.shape
    first = torch.arange(images, device=assignment.target_gt_idx.device)[:, None] * slots
    place = (first + assignment.target_gt_idx).flatten()
    labels = ground_truth.gt_labels.clamp(min=0).flatten().index_select(0, place)
    boxes = ground_truth.gt_bboxes.flatten(0, 1).index_select(0, place)
    return labels.view(shape), boxes.view(*shape, 4)


def scores_by_comparison(labels: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Dense scores, one-hot(label) times weight, by comparison: no scatter, for TensorRT.

    Returns:
        (B, A, C) in the weights' dtype.
    """
    classes = torch.arange(num_classes, device=labels.device)
    return torch.where(labels.unsqueeze(-1) == classes, weights.unsqueeze(-1), 0.0)


def scores_by_scatter(labels: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Dense scores, one-hot(label) times weight, by a scatter into zeros: the faster way in ONNX Runtime.

    Returns:
        (B, A, C) in the weights' dtype.
    """
    zeros = weights.new_zeros((*weights.shape, num_classes))
    return zeros.scatter(2, labels.unsqueeze(-1), weights.unsqueeze(-1))

"""Sides of assigned boxes that a distribution over R bins cannot express: its distances end at R - 1 - 0.01."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch

from yolo_loss.assignment.segment_ops import true_indices
from yolo_loss.boxes import bbox2dist
from yolo_loss.structures import Assignment, ClippedSides, GroundTruth, Predictions


@torch.no_grad()
def count_clipped_sides(predictions: Predictions, ground_truth: GroundTruth, assignment: Assignment) -> ClippedSides:
    """Count the sides that are clipped, without waiting for a GPU.

    Args:
        predictions: The head's output, R > 1.
        ground_truth: Padded; M may be 0.
        assignment: Its targets.
    """
    if ground_truth.gt_labels.shape[1] == 0:
        nothing = predictions.strides.new_zeros(())
        return ClippedSides(nothing.long(), nothing)
    anchors = assignment.fg_mask.shape[1]
    foreground = assignment.fg_mask.flatten()
    # A GPU would have to be asked for the foreground's length.
    device = foreground.device
    index = true_indices(foreground) if device.type == "cpu" else torch.arange(len(foreground), device=device)
    image = torch.div(index, anchors, rounding_mode="floor")
    anchor = index - image * anchors
    slot = image * ground_truth.gt_labels.shape[1] + assignment.target_gt_idx.flatten().index_select(0, index)
    stride = predictions.strides.index_select(0, anchor)
    target = ground_truth.gt_bboxes.flatten(0, 1).index_select(0, slot) / stride
    distance = bbox2dist(predictions.anchor_points.index_select(0, anchor), target)  # (N, 4)
    clipped = (distance > longest_distance(predictions.reg_max)) & foreground.index_select(0, index).unsqueeze(1)
    pixels = torch.where(clipped, distance * stride, 0.0).flatten()
    return ClippedSides(clipped.sum(), torch.cat((pixels, pixels.new_zeros(1))).amax())


def may_exceed_every_level(
    ground_truth: GroundTruth, reg_max: int, strides: Sequence[float], min_box_side: float | None
) -> bool:
    """Whether a box on a CPU is so large that a side of it may be beyond even the coarsest level.

    An anchor lies inside its box, so that no side is farther from it than the box is wide or high.
    """
    boxes = ground_truth.gt_bboxes
    if not boxes.numel():
        return False
    largest = float((boxes[..., 2:] - boxes[..., :2]).amax())
    return not max(largest, min_box_side or 0.0) <= longest_distance(reg_max) * max(strides)


def longest_distance(reg_max: int) -> float:
    """The longest distance that R bins express, in grid units."""
    return reg_max - 1 - 0.01


def warn_of_clipped_sides(clipped: ClippedSides, reg_max: int, strides: Sequence[float]) -> bool:
    """Warn where not even the coarsest level expresses a side, and name what would do.

    Args:
        clipped: The sides of a batch. Reading them waits for a GPU.
        reg_max: R.
        strides: Pixels per cell of each level.

    Returns:
        Whether it warned.
    """
    pixels, stride = float(clipped.longest), max(strides)
    limit = longest_distance(reg_max)
    if pixels <= limit * stride:
        return False
    bins, coarser = math.ceil(pixels / stride + 1.01), math.ceil(pixels / limit)
    warnings.warn(
        f"boxes have sides up to {pixels:.0f} pixels from their anchor, but with reg_max {reg_max} even the level of "
        f"stride {stride:g} ends at {limit * stride:.0f} pixels, so such boxes cannot be learned in full; a head with "
        f"reg_max {bins} would do, or a further level of stride {coarser}",
        UserWarning,
        stacklevel=2,
    )
    return True

"""Task-aligned assignment in two kernels of a GPU (Feng et al., arXiv 2108.07755).

What the dense implementation computes for all (ground truth, anchor) pairs, without a tensor of that size: nothing but
each anchor's owner is written. ``yolo_loss.assignment.dense`` is what it is checked by, and what computes in its place
where a kernel does not fit.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from yolo_loss.assignment.dense import assign_dense
from yolo_loss.assignment.params import AssignerParams, candidate_areas
from yolo_loss.boxes import box_geometry
from yolo_loss.execution.channels import ClassScores
from yolo_loss.structures import Assignment, GroundTruth

# What the kernels have: exponents without a routine of their own, levels as pointers, the k best in registers.
EXPONENTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
LEVELS, LARGEST_K = 3, 64
# Anchors that a program looks at together.
BLOCK = 512


def available() -> bool:
    """The package is installed."""
    return importlib.util.find_spec("triton") is not None


def is_supported(scores: ClassScores, params: AssignerParams, device: torch.device) -> bool:
    """Whether the kernels can compute this; on a CPU only by Triton's interpreter, with ``TRITON_INTERPRET=1``."""
    runs = device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    plain = params.alpha in EXPONENTS and params.beta in EXPONENTS and params.topk2 is None
    small = len(scores.levels) <= LEVELS and params.topk <= LARGEST_K
    return runs and plain and small and scores.dtype == torch.float32 and available()


def assign_triton(
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
        The assignment in compact form; equal to the dense implementation's but for the rounding of a few operations.
    """
    if not is_supported(scores, params, pd_bboxes.device) or pd_bboxes.numel() == 0:
        return assign_dense(scores, pd_bboxes, anc_points, ground_truth, params)
    from yolo_loss.assignment.triton_kernels import choose, settle

    images, anchors, _ = pd_bboxes.shape
    truth_boxes, slots = ground_truth.gt_bboxes, ground_truth.gt_bboxes.shape[1]
    labels = ground_truth.gt_labels.clamp(min=0).contiguous()
    levels, steps, ends = _levels(scores)
    inputs = (
        anc_points.t().contiguous(),  # (2, A)
        boxes := torch.stack(box_geometry(pd_bboxes.unbind(-1))),  # (6, B, A)
        torch.stack(box_geometry(truth_boxes.unbind(-1))),  # (6, B, M)
        candidate_areas(truth_boxes, params).permute(2, 0, 1).contiguous(),  # (4, B, M)
        labels,
        ground_truth.mask_gt.to(torch.int32).contiguous(),
        *levels,
        *steps,
    )
    sizes = slots, anchors, images * anchors, images * slots, *ends, params.eps
    # Fused operations round less than those of the dense implementation, and decide otherwise where two are nearly equal.
    numbers = {"alpha": params.alpha, "beta": params.beta, "logits": scores.logits, "block": BLOCK}
    numbers |= {"enable_fp_fusion": False}

    count, chooser, owner = (labels.new_zeros((images, anchors), dtype=torch.int32) for _ in range(3))
    metrics, max_metric, max_iou = (boxes.new_zeros((images, size)) for size in (anchors, slots, slots))
    k = min(params.topk, anchors)
    room = 1 << max(k - 1, 0).bit_length()
    grid = ((anchors + BLOCK - 1) // BLOCK, images)
    with _current(pd_bboxes.device):
        choose[(images * slots,)](*inputs, count, chooser, *sizes, k=k, room=room, **numbers)
        settle[grid](*inputs, count, chooser, owner, metrics, max_metric, max_iou, *sizes, **numbers)
    index = owner.long()
    weights = metrics * max_iou.gather(1, index) / (max_metric.gather(1, index) + params.eps)
    foreground = count > 0
    return Assignment(foreground, index, torch.where(foreground, weights, 0.0))


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, the tensors' device is the current one, on which Triton launches its kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _levels(scores: ClassScores) -> tuple[list[Tensor], list[int], tuple[int, int]]:
    """Class scores of three levels, where some may be empty; how far a step along each of their axes is; two ends."""
    views = [level.view() for level in scores.levels]
    counts = [view.shape[2] for view in views] + [0] * (LEVELS - len(views))
    views += [views[-1]] * (LEVELS - len(views))
    return views, [step for view in views for step in view.stride()], (counts[0], counts[0] + counts[1])

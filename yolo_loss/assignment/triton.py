"""Task-aligned assignment in two GPU kernels (Feng et al., arXiv 2108.07755).

Computes what the dense implementation computes for all (ground truth, anchor) pairs without a tensor of that size: only
results per anchor and per ground truth are written. ``yolo_loss.assignment.dense`` is the reference for it, and
computes in its place where the kernels do not apply.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from yolo_loss.assignment.dense import assign_dense
from yolo_loss.assignment.params import AssignerParams, enlarge
from yolo_loss.boxes import box_geometry
from yolo_loss.execution.channels import ClassScores
from yolo_loss.structures import Assignment, GroundTruth

# Limits of the kernels: powers are written out, levels are separate pointers, and the k best stay in registers.
EXPONENTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
MAX_LEVELS, MAX_K = 3, 64
# Anchors that a kernel program computes at once.
BLOCK = 512


def available() -> bool:
    """Whether the package ``triton`` is installed."""
    return importlib.util.find_spec("triton") is not None


def is_supported(scores: ClassScores, params: AssignerParams, device: torch.device) -> bool:
    """Whether the kernels can compute this; on a CPU only in Triton's interpreter, with ``TRITON_INTERPRET=1``."""
    runs = device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    plain = params.alpha in EXPONENTS and params.beta in EXPONENTS and params.topk2 is None
    small = len(scores.levels) <= MAX_LEVELS and params.topk <= MAX_K
    return runs and plain and small and scores.dtype == torch.float32 and available()


def assign_triton(
    scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth, params: AssignerParams
) -> Assignment:
    """Assign at most one ground truth to each anchor.

    Args:
        scores: Class scores of all anchors.
        pd_bboxes: (B, A, 4) predicted boxes, pixel xyxy.
        anc_points: (A, 2) pixels.
        ground_truth: Padded, M >= 1.
        params: Hyper-parameters.

    Returns:
        The assignment in compact form; equal to the dense implementation's up to the rounding of a few operations.
    """
    if not is_supported(scores, params, pd_bboxes.device) or pd_bboxes.numel() == 0:
        return assign_dense(scores, pd_bboxes, anc_points, ground_truth, params)
    from yolo_loss.assignment.triton_kernels import resolve_conflicts, select_topk

    images, anchors, _ = pd_bboxes.shape
    slots = ground_truth.gt_bboxes.shape[1]
    inputs = _kernel_inputs(scores, pd_bboxes, anc_points, ground_truth, params)
    times_chosen, chosen_by, gt_idx = (
        torch.zeros((images, anchors), dtype=torch.int32, device=pd_bboxes.device) for _ in range(3)
    )
    metric, max_metric, max_iou = (pd_bboxes.new_zeros((images, size)) for size in (anchors, slots, slots))
    inputs |= {"times_chosen": times_chosen, "chosen_by": chosen_by}
    outputs = {"gt_idx": gt_idx, "anchor_metric": metric, "max_metric": max_metric, "max_iou": max_iou}
    k = min(params.topk, anchors)
    with _launching_on(pd_bboxes.device):
        select_topk[(images * slots,)](**inputs, k=k, table_size=1 << max(k - 1, 0).bit_length())
        resolve_conflicts[((anchors + BLOCK - 1) // BLOCK, images)](**inputs, **outputs)
    index = gt_idx.long()
    weights = metric * max_iou.gather(1, index) / (max_metric.gather(1, index) + params.eps)
    fg_mask = times_chosen > 0
    return Assignment(fg_mask, index, torch.where(fg_mask, weights, 0.0))


def _kernel_inputs(
    scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth, params: AssignerParams
) -> dict[str, Any]:
    """Arguments of both kernels by name."""
    images, anchors, _ = pd_bboxes.shape
    truth_boxes = ground_truth.gt_bboxes
    # Three levels, of which some may be empty.
    views = [level.view() for level in scores.levels]
    counts = [view.shape[2] for view in views] + [0] * (MAX_LEVELS - len(views))
    views += [views[-1]] * (MAX_LEVELS - len(views))
    strides = [stride for view in views for stride in view.stride()]
    return {
        "points": anc_points.t().contiguous(),  # (2, A)
        "boxes": torch.stack(box_geometry(pd_bboxes.unbind(-1))),  # (6, B, A)
        "truth_boxes": torch.stack(box_geometry(truth_boxes.unbind(-1))),  # (6, B, M)
        "areas": enlarge(truth_boxes, params.min_box_side).permute(2, 0, 1).contiguous(),  # (4, B, M)
        "labels": ground_truth.gt_labels.clamp(min=0).contiguous(),
        "valid": ground_truth.mask_gt.to(torch.int32).contiguous(),
        **{f"s{level}": view for level, view in enumerate(views)},
        **{f"t{axis}": stride for axis, stride in enumerate(strides)},
        "slots": truth_boxes.shape[1],
        "anchors": anchors,
        "all_anchors": images * anchors,
        "all_slots": images * truth_boxes.shape[1],
        "end0": counts[0],
        "end1": counts[0] + counts[1],
        "eps": params.eps,
        "alpha": params.alpha,
        "beta": params.beta,
        "logits": scores.logits,
        "block": BLOCK,
        # Fused operations round less than the dense implementation's, and decide otherwise between near-equal values.
        "enable_fp_fusion": False,
    }


def _launching_on(device: torch.device) -> AbstractContextManager[Any]:
    """Make the tensors' device the current one, on which Triton launches its kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

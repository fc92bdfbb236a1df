"""Task-aligned assignment in GPU kernels (Feng et al., arXiv 2108.07755).

Computes what the dense implementation computes for all (ground truth, anchor) pairs without a tensor of that size: a
program per ground truth looks at the anchors that its box covers, and only results per anchor and per ground truth are
written. ``yolo_loss.assignment.dense`` is the reference for it, and computes in its place where the kernels do not
apply.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.dense import assign_dense
from yolo_loss.assignment.params import AssignerParams
from yolo_loss.execution.channels import ClassScores
from yolo_loss.execution.transforms import transformed
from yolo_loss.structures import Assignment, AssignmentResult, GroundTruth
from yolo_loss.triton.launch import as_flags, is_supported, launch, power_of_two, steps_of

# Anchors that a program computes at once: of a box, of an image, and when it also writes rows of scores.
BOX_BLOCK, IMAGE_BLOCK, ROW_BLOCK = 256, 256, 32
# Points that the program that finds the levels reads at once, and programs that set memory to 0 beside it.
POINT_BLOCK, MAX_ZERO_PROGRAMS = 2048, 255
# Entries of the tables of levels: a count, and starts, widths and heights; positions and steps in x and in y.
LEVEL_NUMBERS, LEVEL_POSITIONS = 1 + 3 * 16, 4 * 16
# Fused operations round less than the dense implementation's, and decide otherwise between near-equal values.
AS_DENSE = {"enable_fp_fusion": False}


class Memory(NamedTuple):
    """Memory that the kernels of one assignment share.

    Attributes:
        zeroed: (2 B A + B M,) int64 that one of the first kernels sets to 0; the next four are views of it.
        claims: (B, A) int64, what was chosen.
        best: (B, A) int64, candidates of largest IoU.
        max_metric: (B, M).
        max_iou: (B, M).
        owner: (B, A) int32 slots, -1 on background.
        metric: (B, A).
        level_numbers: int32 starts, widths and heights of the levels.
        level_positions: First points and steps of the levels.
    """

    zeroed: Tensor
    claims: Tensor
    best: Tensor
    max_metric: Tensor
    max_iou: Tensor
    owner: Tensor
    metric: Tensor
    level_numbers: Tensor
    level_positions: Tensor


class Pairs(NamedTuple):
    """What pairs of ground truths and anchors are computed from.

    Attributes:
        points: (A, 2), multiplied by ``scales``.
        scales: (A, 1) contiguous, pixels per unit of the points; None: 1.
        boxes: (B, A, 4) predicted boxes, pixel xyxy.
        scores: Class scores.
        truth: Padded ground truth, contiguous.
    """

    points: Tensor
    scales: Tensor | None
    boxes: Tensor
    scores: ClassScores
    truth: GroundTruth


class Weighed(NamedTuple):
    """An assignment with the sums of its weights.

    Attributes:
        assignment: In compact form.
        weight_sums: (B, parts) float32, partial sums of each image's weights.
        targets: Labels, boxes and dense scores, if they were asked for.
    """

    assignment: Assignment
    weight_sums: Tensor
    targets: AssignmentResult | None


def assign_triton(
    scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth, params: AssignerParams
) -> Assignment:
    """Assign at most one ground truth to each anchor.

    Args:
        scores: Class scores of all anchors.
        pd_bboxes: (B, A, 4) predicted boxes, pixel xyxy.
        anc_points: (A, 2) pixels; with (B, A, 2) the dense implementation computes.
        ground_truth: Padded, M >= 1.
        params: Hyper-parameters.

    Returns:
        The assignment in compact form; equal to the dense implementation's up to the rounding of a few operations.
    """
    if anc_points.shape[:-2] or not _applies(scores, pd_bboxes, params):
        return assign_dense(scores, pd_bboxes, anc_points, ground_truth, params)
    return _assign(scores, pd_bboxes, anc_points, ground_truth, params, with_targets=False).assignment


def assign_targets(
    scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth, params: AssignerParams
) -> AssignmentResult | None:
    """``assign_triton`` with labels, boxes and dense scores written by the last kernel.

    Returns:
        The five targets; None where the kernels do not apply.
    """
    if ground_truth.gt_labels.shape[1] == 0 or anc_points.shape[:-2] or not _applies(scores, pd_bboxes, params):
        return None
    return _assign(scores, pd_bboxes, anc_points, ground_truth, params, with_targets=True).targets


def _applies(scores: ClassScores, pd_bboxes: Tensor, params: AssignerParams) -> bool:
    supported = is_supported(scores.dtype, params, pd_bboxes.device) and pd_bboxes.numel() > 0
    return supported and not torch.compiler.is_compiling() and not transformed([pd_bboxes])


def _assign(
    scores: ClassScores,
    pd_bboxes: Tensor,
    anc_points: Tensor,
    ground_truth: GroundTruth,
    params: AssignerParams,
    with_targets: bool,
) -> Weighed:
    from yolo_loss.triton.assignment_kernels import prepare

    pairs = Pairs(anc_points, None, pd_bboxes, scores, contiguous(ground_truth))
    memory = allocate(pd_bboxes.shape[0], pd_bboxes.shape[1], ground_truth.gt_bboxes.shape[1], pd_bboxes.device)
    arguments = {
        **_point_arguments(pairs),
        **{name: getattr(memory, name) for name in ("level_numbers", "level_positions", "zeroed")},
        "length": memory.zeroed.numel(),
        "anchors": pd_bboxes.shape[1],
        "block": POINT_BLOCK,
        "num_warps": 8,
    }
    zero_programs = min(MAX_ZERO_PROGRAMS, -(-memory.zeroed.numel() // POINT_BLOCK))
    launch(prepare, (1 + zero_programs,), pd_bboxes.device, arguments)
    return assign_prepared(pairs, memory, params, with_targets)


def allocate(images: int, anchors: int, slots: int, device: torch.device) -> Memory:
    """Allocate the memory of an assignment; nothing is written."""
    size, truths = images * anchors, images * slots
    zeroed = torch.empty(2 * size + truths, dtype=torch.int64, device=device)
    maxima = zeroed[2 * size :].view(torch.float32)
    return Memory(
        zeroed,
        zeroed[:size].view(images, anchors),
        zeroed[size : 2 * size].view(images, anchors),
        maxima[:truths].view(images, slots),
        maxima[truths:].view(images, slots),
        torch.empty((images, anchors), dtype=torch.int32, device=device),
        torch.empty((images, anchors), dtype=torch.float32, device=device),
        torch.empty(LEVEL_NUMBERS, dtype=torch.int32, device=device),
        torch.empty(LEVEL_POSITIONS, dtype=torch.float32, device=device),
    )


def contiguous(ground_truth: GroundTruth) -> GroundTruth:
    """Ground truth as kernels read it, with float32 boxes and the mask as bytes."""
    labels, boxes, mask = ground_truth
    return GroundTruth(labels.contiguous(), boxes.float().contiguous(), as_flags(mask))


def assign_prepared(pairs: Pairs, memory: Memory, params: AssignerParams, with_targets: bool = False) -> Weighed:
    """Assign with memory in which the levels were found and zeros written.

    Args:
        pairs: Points, predictions and ground truth; M may be 0.
        memory: Its levels are those of the points.
        params: Hyper-parameters.
        with_targets: Also write labels, boxes and dense scores; M >= 1.
    """
    from yolo_loss.triton.assignment_kernels import keep_topk2, resolve_conflicts, select_topk

    images, anchors, _ = pairs.boxes.shape
    slots = pairs.truth.gt_bboxes.shape[1]
    device = pairs.boxes.device
    shared = {**_pair_arguments(pairs, params), "slots": slots, "anchors": anchors}
    by_box = {"level_numbers": memory.level_numbers, "level_positions": memory.level_positions, "block": BOX_BLOCK}
    by_box |= {"valid": pairs.truth.mask_gt, "min_side": params.min_box_side or 0.0}
    maxima = {"max_metric": memory.max_metric, "max_iou": memory.max_iou}
    claims = {"claims": memory.claims, "best": memory.best}
    results = {"owner": memory.owner, "metric": memory.metric}
    of_points = _point_arguments(pairs)
    table = _table(params.topk, anchors)
    launch(select_topk, (images * slots,), device, shared | by_box | claims | of_points | table | {"eps": params.eps})
    own = {"with_maxima": params.topk2 is None, "block": IMAGE_BLOCK}
    launch(resolve_conflicts, (-(-anchors // IMAGE_BLOCK), images), device, shared | claims | results | maxima | own)
    if params.topk2 is not None:
        names = ("boxes", "box_steps", "truth", "slots", "anchors")
        arguments = {name: shared[name] for name in names} | by_box | results | maxima | AS_DENSE
        launch(keep_topk2, (images * slots,), device, arguments | _table(params.topk2, anchors))
    return _weigh(pairs, memory, params.eps, with_targets)


def _weigh(pairs: Pairs, memory: Memory, eps: float, with_targets: bool) -> Weighed:
    from yolo_loss.triton.assignment_kernels import weigh

    images, anchors, _ = pairs.boxes.shape
    device, (labels, boxes, _) = pairs.boxes.device, pairs.truth
    classes = pairs.scores.levels[0].size
    block = ROW_BLOCK if with_targets else IMAGE_BLOCK
    parts = -(-anchors // block)
    flags = torch.empty((images, anchors), dtype=torch.uint8, device=device)
    index = torch.empty((images, anchors), dtype=torch.int64, device=device)
    weights, sums = torch.empty_like(memory.metric), memory.metric.new_empty((images, parts))
    assignment = Assignment(flags.view(torch.bool), index, weights)
    targets = None
    if with_targets:
        target_boxes, target_scores = (weights.new_empty((images, anchors, width)) for width in (4, classes))
        targets = AssignmentResult(torch.empty_like(index), target_boxes, target_scores, assignment.fg_mask, index)
    arguments = {
        **{name: getattr(memory, name) for name in ("owner", "metric", "max_metric", "max_iou")},
        **{"truth": boxes, "labels": labels, "foreground": flags, "gt_idx": index, "weights": weights},
        "weight_sums": sums,
        "target_labels": None if targets is None else targets.target_labels,
        "target_boxes": None if targets is None else targets.target_bboxes,
        "target_scores": None if targets is None else targets.target_scores,
        **{"slots": labels.shape[1], "anchors": anchors, "classes": classes, "eps": eps},
        **{"with_targets": with_targets, "channels": min(128, power_of_two(classes)), "block": block},
    }
    launch(weigh, (parts, images), device, arguments | AS_DENSE)
    return Weighed(assignment, sums, targets)


def _table(k: int, anchors: int) -> dict[str, int]:
    """Size of the table of the k best."""
    k = min(k, anchors)
    return {"k": k, "table_size": power_of_two(k)}


def _point_arguments(pairs: Pairs) -> dict[str, Any]:
    return {"points": pairs.points, "point_steps": tuple(pairs.points.stride()), "scales": pairs.scales}


def _pair_arguments(pairs: Pairs, params: AssignerParams) -> dict[str, Any]:
    """Arguments of the kernels that compute metrics, by name."""
    views = [level.view() for level in pairs.scores.levels]
    return {
        **{"boxes": pairs.boxes, "box_steps": tuple(pairs.boxes.stride())},
        **{"scores": tuple(views), "steps": steps_of(views), "sizes": tuple(view.shape[2] for view in views)},
        **{"truth": pairs.truth.gt_bboxes, "labels": pairs.truth.gt_labels, "classes": views[0].shape[1]},
        **{"alpha": params.alpha, "beta": params.beta, "logits": pairs.scores.logits},
        **AS_DENSE,
    }

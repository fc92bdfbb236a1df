"""Task-aligned assignment over dense (B, M, A) tensors (Feng et al., arXiv 2108.07755).

It has no data-dependent shape and no scatter, so every runtime accepts it, TensorRT included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_loss.assignment.params import AssignerParams, enlarge, power
from yolo_loss.assignment.segment_ops import true_indices
from yolo_loss.boxes import box_geometry, ciou_of_geometry
from yolo_loss.execution.buffers import is_plain
from yolo_loss.execution.channels import ClassScores
from yolo_loss.execution.chunks import chunk_slices, concatenate_assignments
from yolo_loss.execution.compilation import compiling_kernels, kernel
from yolo_loss.structures import Assignment, GroundTruth

# (Ground truth, anchor) pairs that a GPU computes at once: each takes 25 bytes of live memory, and tensors of this
# length stay in its cache from one operation to the next.
PAIRS_PER_CHUNK = 2**22
# Up to this share of all anchors, selecting those in any box costs less than it saves.
MAX_CANDIDATE_SHARE = 0.5


def assign_dense(
    scores: ClassScores,
    pd_bboxes: Tensor,
    anc_points: Tensor,
    ground_truth: GroundTruth,
    params: AssignerParams,
) -> Assignment:
    """Assign at most one ground truth to each anchor.

    Args:
        scores: Class scores of all anchors.
        pd_bboxes: (B, A, 4) predicted boxes, pixel xyxy.
        anc_points: (A, 2) pixels, or (S, A, 2) with S 1 or B.
        ground_truth: Padded, M >= 1.
        params: Hyper-parameters.

    Returns:
        The assignment in compact form.
    """
    if anc_points.shape[:-2]:
        anc_points = _points_of_images(anc_points, pd_bboxes.shape[0])
    if is_plain(pd_bboxes) and not compiling_kernels():
        return assign_candidates(scores, pd_bboxes, anc_points, ground_truth, params)
    if pd_bboxes.device.type == "cpu" or torch.compiler.is_compiling():
        return assign_images(scores, pd_bboxes, anc_points, ground_truth, params)
    return assign_in_chunks(scores, pd_bboxes, anc_points, ground_truth, params, PAIRS_PER_CHUNK)


def assign_in_chunks(
    scores: ClassScores,
    pd_bboxes: Tensor,
    anc_points: Tensor,
    ground_truth: GroundTruth,
    params: AssignerParams,
    limit: int,
) -> Assignment:
    """:func:`assign_dense` in chunks of images, each with at most ``limit`` pairs or of a single image."""
    images, anchors, _ = pd_bboxes.shape
    assignments = []
    for chunk in chunk_slices([ground_truth.gt_bboxes.shape[1] * anchors] * images, limit):
        chunk_truth = GroundTruth(*(field[chunk] for field in ground_truth))
        points = anc_points[chunk] if anc_points.shape[:-2] else anc_points
        assignments.append(assign_images(scores.of_images(chunk), pd_bboxes[chunk], points, chunk_truth, params))
    return concatenate_assignments(assignments)


@kernel
def assign_images(
    scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth, params: AssignerParams
) -> Assignment:
    """:func:`assign_dense` of all images at once."""
    return _assign_among(find_candidates(anc_points, ground_truth, params), scores, pd_bboxes, ground_truth, params)


def assign_candidates(
    scores: ClassScores,
    pd_bboxes: Tensor,
    anc_points: Tensor,
    ground_truth: GroundTruth,
    params: AssignerParams,
) -> Assignment:
    """:func:`assign_dense` of the anchors that lie in any box, where these can be counted without waiting."""
    candidates = find_candidates(anc_points, ground_truth, params)  # (B, M, A)
    anchors = true_indices(candidates.flatten(0, 1).any(dim=0))
    images, total, _ = pd_bboxes.shape
    if anchors.shape[0] > total * MAX_CANDIDATE_SHARE:
        return _assign_among(candidates, scores, pd_bboxes, ground_truth, params)
    empty = pd_bboxes.new_zeros((images, total))
    background = Assignment(empty.bool(), empty.long(), empty)
    if not anchors.shape[0]:
        return background
    boxes = pd_bboxes.index_select(1, anchors)
    found = _assign_among(candidates.index_select(2, anchors), scores, boxes, ground_truth, params, anchors)
    return Assignment(*(field.index_copy_(1, anchors, own) for field, own in zip(background, found, strict=True)))


def _assign_among(
    candidates: Tensor,
    scores: ClassScores,
    pd_bboxes: Tensor,
    ground_truth: GroundTruth,
    params: AssignerParams,
    anchors: Tensor | None = None,
) -> Assignment:
    """Assign some anchors, or all.

    Args:
        candidates: (B, M, N) bool.
        scores: Class scores of all anchors.
        pd_bboxes: (B, N, 4) predicted boxes, pixel xyxy.
        ground_truth: Padded, M >= 1.
        params: Hyper-parameters.
        anchors: (N,) ascending; None: all.

    Returns:
        The assignment, (B, N).
    """
    ious, metric = align_metric(scores, pd_bboxes, ground_truth, candidates, params, anchors)
    chosen = select_topk(metric, params.topk)
    assigned = resolve_conflicts(chosen, ious, candidates)
    if params.topk2 is not None:
        assigned = select_topk(torch.where(assigned, metric, 0.0), params.topk2)
    return normalize_scores(assigned, metric, ious, params.eps)


def _points_of_images(points: Tensor, images: int) -> Tensor:
    """Each image's points (B, A, 2), from (S, A, 2) with S 1 or B."""
    # Not expand: in a graph S and B are both unknown.
    image = torch.arange(images, device=points.device)
    return points.index_select(0, image.clamp(max=points.shape[0] - 1))


def find_candidates(anc_points: Tensor, ground_truth: GroundTruth, params: AssignerParams) -> Tensor:
    """Find the pairs whose anchor's centre lies inside the box.

    Returns:
        (B, M, A) bool.
    """
    boxes = enlarge(ground_truth.gt_bboxes, params.min_box_side)
    return is_inside(anc_points, boxes, params.eps) & ground_truth.mask_gt


def is_inside(anc_points: Tensor, boxes: Tensor, eps: float) -> Tensor:
    """Whether each anchor's distance from every side of a box, towards its inside, is above ``eps``.

    Args:
        anc_points: (A, 2) or (B, A, 2).
        boxes: (B, M, 4) xyxy in the same unit.
        eps: In the same unit.

    Returns:
        (B, M, A) bool.
    """
    x1, y1, x2, y2 = boxes.split(1, dim=-1)  # each (B, M, 1)
    points = anc_points.unsqueeze(1) if anc_points.shape[:-2] else anc_points
    x, y = (coordinate.contiguous() for coordinate in points.unbind(-1))  # each (A,) or (B, 1, A)
    inside_x = torch.minimum(x - x1, x2 - x)  # (B, M, A)
    inside_y = torch.minimum(y - y1, y2 - y)
    return torch.minimum(inside_x, inside_y) > eps


def align_metric(
    scores: ClassScores,
    pd_bboxes: Tensor,
    ground_truth: GroundTruth,
    candidates: Tensor,
    params: AssignerParams,
    anchors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute IoU u and metric t = s^alpha * u^beta of all pairs, zero outside the candidates.

    The scores are those of all anchors, of which ``anchors`` selects some.

    Returns:
        u and t, each (B, M, A).
    """
    truth = box_geometry(ground_truth.gt_bboxes.unsqueeze(2).unbind(-1))  # (B, M, 1)
    predicted = box_geometry([side.contiguous() for side in pd_bboxes.unsqueeze(1).unbind(-1)])  # (B, 1, A)
    ious = ciou_of_geometry(truth, predicted)  # (B, M, A)
    # `> 0` and not clamp, so that a NaN prediction has IoU 0.
    ious = torch.where(candidates & (ious > 0), ious, 0.0)
    class_scores = scores.of_slots(ground_truth.gt_labels.squeeze(-1).clamp(min=0), anchors)  # (B, M, A)
    metric = power(class_scores, params.alpha) * power(ious, params.beta)
    return ious, torch.where(candidates & (metric > 0), metric, 0.0)


def select_topk(metric: Tensor, k: int) -> Tensor:
    """Select the k largest positive entries of each row; among equal ones the smaller index wins.

    Runtimes disagree on which of several equal values their top-k returns. So only its threshold is used, and entries
    equal to the threshold are counted off in order.

    Args:
        metric: (B, M, A), not negative.
        k: How many at most.

    Returns:
        (B, M, A) bool.
    """
    # The built-in min for numbers: some compilers refuse torch.sym_min of two of them.
    k = torch.sym_min(k, metric.shape[-1]) if torch.compiler.is_exporting() else min(k, metric.shape[-1])
    threshold = metric.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)  # (B, M, 1)
    above = metric > threshold
    equal = (metric == threshold) & (metric > 0)
    room = k - above.sum(dim=-1, keepdim=True, dtype=torch.int32)
    return above | (equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= room))


def resolve_conflicts(chosen: Tensor, ious: Tensor, candidates: Tensor) -> Tensor:
    """Assign an anchor chosen by several to the largest IoU among all ground truths whose candidate it is.

    Args:
        chosen: (B, M, A) bool.
        ious: (B, M, A).
        candidates: (B, M, A) bool; the winner need not be among those that chose the anchor.

    Returns:
        (B, M, A) bool with at most one True along M.
    """
    contested = chosen.sum(dim=1, keepdim=True, dtype=torch.int32) > 1  # (B, 1, A)
    winner = _first_largest(torch.where(candidates, ious, -1.0))  # (B, 1, A)
    slots = torch.arange(chosen.shape[1], device=chosen.device)[:, None]  # (M, 1)
    # and/or/not in place of where: ONNX Runtime has no Where for bool.
    return (contested & (winner == slots)) | (~contested & chosen)


def _first_largest(values: Tensor) -> Tensor:
    """Index along M of the largest of (B, M, A), among equal ones the smallest, (B, 1, A) int64."""
    if not is_plain(values):
        return values.argmax(dim=1, keepdim=True)
    # On a CPU argmax takes an element at a time, and so do reductions of int64.
    slots = torch.arange(values.shape[1], dtype=torch.int32, device=values.device)[:, None]
    is_largest = values == values.amax(dim=1, keepdim=True)
    return torch.where(is_largest, slots, values.shape[1]).amin(dim=1, keepdim=True).long()


def normalize_scores(assigned: Tensor, metric: Tensor, ious: Tensor, eps: float) -> Assignment:
    """Compute the normalized alignment score of each assigned anchor, t * max_u / (max_t + eps), multiplying first.

    The maxima run over the anchors assigned to the same ground truth.

    Args:
        assigned: (B, M, A) bool with at most one True along M.
        metric: (B, M, A).
        ious: (B, M, A).
        eps: Keeps the quotient finite.

    Returns:
        The assignment in compact form.
    """
    fg_mask = assigned.sum(dim=1, dtype=torch.int32) > 0  # (B, A)
    gt_idx = _first_largest(assigned.to(torch.int32)).squeeze(1)  # (B, A), 0 on background
    max_metric = torch.where(assigned, metric, 0.0).amax(dim=-1)  # (B, M)
    max_iou = torch.where(assigned, ious, 0.0).amax(dim=-1)
    anchor_metric = metric.gather(1, gt_idx.unsqueeze(1)).squeeze(1)  # (B, A)
    weights = anchor_metric * max_iou.gather(1, gt_idx) / (max_metric.gather(1, gt_idx) + eps)
    return Assignment(fg_mask, gt_idx, torch.where(fg_mask, weights, 0.0))

"""Explain the assignment and the loss of a batch: the entry points."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from yolo_loss.anchors import compute_dtype, decode_levels
from yolo_loss.assigner import TaskAlignedAssigner
from yolo_loss.class_factors import class_factors
from yolo_loss.collate import add_empty_slot, class_inputs_of, pad_to_device
from yolo_loss.criterion import NO_CLASS_INPUTS, DetectionLoss
from yolo_loss.execution.channels import Channels, ClassScores
from yolo_loss.execution.compilation import uncompiled, without_autocast
from yolo_loss.explain.candidates import assignment_of, decide, measure_candidates
from yolo_loss.explain.document import Subject, build_document
from yolo_loss.explain.listing import list_outside
from yolo_loss.explain.shares import share_loss
from yolo_loss.explain.structures import Explanation, LossShares, TruthReport
from yolo_loss.explain.truths import Scene, report_pairs, report_truths
from yolo_loss.predictions import RawOutput, join_predictions
from yolo_loss.structures import ClassInputs, GroundTruth, Predictions
from yolo_loss.validate import check_batch


@uncompiled
def explain_loss(criterion: DetectionLoss, preds: RawOutput, batch: Mapping[str, Any]) -> Explanation:
    """Explain the assignment and the loss of a training batch.

    Args:
        criterion: Its hyper-parameters are used; of an ``EndToEndLoss`` one of the two parts.
        preds: The head's output, as ``DetectionLoss`` takes it.
        batch: The batch, as ``DetectionLoss`` takes it.

    Returns:
        The explanation with the loss, detached; M as ``pad_ground_truth`` gives it.

    Raises:
        ValueError: As ``DetectionLoss``.
    """
    predictions = join_predictions(preds, criterion.strides, criterion.num_classes, criterion.reg_max)
    like, images = predictions.anchor_points, predictions.levels[0].scores_source.shape[0]
    size = image_size_of(criterion, predictions)
    columns = check_batch(batch, images, criterion.num_classes)
    ground_truth = pad_to_device(columns, like, size, images, criterion.max_boxes)
    class_inputs = class_inputs_of(batch, like, size, images, criterion.num_classes)
    with without_autocast(like.device):
        return explain_padded(criterion, predictions, ground_truth, class_inputs)


@torch.no_grad()
def explain_padded(
    criterion: DetectionLoss,
    predictions: Predictions,
    ground_truth: GroundTruth,
    class_inputs: ClassInputs = NO_CLASS_INPUTS,
) -> Explanation:
    """Explain predictions and padded ground truth; the exported model holds this function.

    Args:
        criterion: Its hyper-parameters are used.
        predictions: As ``join_predictions`` gives them.
        ground_truth: As ``pad_ground_truth`` gives it; M may be 0.
        class_inputs: Class weights of each image, and regions to ignore.

    Returns:
        The explanation with the loss.
    """
    points, strides = predictions.anchor_points, predictions.strides
    boxes = decode_levels(predictions.pred_distri, points, predictions.reg_max) * strides  # (B, A, 4) pixels
    scores = ClassScores(predictions.pred_scores, points.dtype, logits=True)
    scene = Scene(
        add_empty_slot(ground_truth),
        points * strides,
        strides,
        levels_of(strides),
        len(criterion.strides),
        far_corner(points * strides, strides),
        predictions.reg_max,
        criterion.assigner.params.eps,
    )
    found = _explain(criterion.assigner, scores, boxes, scene)
    factors = class_factors(criterion.class_weights, class_inputs, predictions, found.assignment, scene.eps)
    shares = share_loss(
        predictions, scene.ground_truth, found.assignment, criterion.class_loss, criterion.gains, factors
    )
    slots = ground_truth.gt_labels.shape[1]
    return found._replace(shares=_without_empty_slot(shares, slots))


@uncompiled
@torch.no_grad()
def explain_assignment(
    assigner: TaskAlignedAssigner,
    pd_scores: Tensor,
    pd_bboxes: Tensor,
    anc_points: Tensor,
    gt_labels: Tensor,
    gt_bboxes: Tensor,
    mask_gt: Tensor,
    *,
    strides: Tensor | None = None,
    reg_max: int | None = None,
) -> Explanation:
    """Explain an assignment alone, from the assigner's inputs.

    Args:
        assigner: Its hyper-parameters are used.
        pd_scores: (B, A, C) class probabilities.
        pd_bboxes: (B, A, 4) predicted boxes, pixel xyxy.
        anc_points: (A, 2) anchor points, pixels.
        gt_labels: (B, M, 1) classes; below 0 counts as 0.
        gt_bboxes: (B, M, 4) pixel xyxy.
        mask_gt: (B, M, 1) non-zero on valid slots.
        strides: (A, 1) pixels per cell of each anchor, level by level, as ``make_anchors`` gives them. None: all
            anchors are of one level, and no box counts as outside the image or as clipped.
        reg_max: R, bins per side of the head, for ``clipped_share``; None: no side counts as clipped.

    Returns:
        The explanation without a loss.

    Raises:
        ValueError: As the assigner, ``anc_points`` are those of each image, or ``strides`` has another length than
            they.
    """
    pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt = assigner.check_inputs(
        pd_scores=pd_scores,
        pd_bboxes=pd_bboxes,
        anc_points=anc_points,
        gt_labels=gt_labels,
        gt_bboxes=gt_bboxes,
        mask_gt=mask_gt,
    )
    if anc_points.shape[:-2]:
        raise ValueError(f"anc_points has shape {tuple(anc_points.shape)}; explain each such image alone")
    dtype = compute_dtype(pd_scores, pd_bboxes, anc_points, gt_bboxes)
    points = anc_points.to(dtype)
    truth = add_empty_slot(GroundTruth(gt_labels.long(), gt_bboxes.to(dtype), mask_gt.bool()))
    level, corner = torch.zeros_like(points[:, 0], dtype=torch.long), None
    if strides is not None:
        if strides.numel() != points.shape[0]:
            raise ValueError(f"strides has {strides.numel()} entries, anc_points has {points.shape[0]}; give one each")
        strides = strides.reshape(-1, 1).to(points)
        level, corner = levels_of(strides), far_corner(points, strides)
    scene = Scene(truth, points, strides, level, int(level[-1]) + 1, corner, reg_max, assigner.params.eps)
    scores = ClassScores((Channels(pd_scores.transpose(1, 2), 0, pd_scores.shape[2]),), dtype)
    return _explain(assigner, scores, pd_bboxes.to(dtype), scene)


def _explain(assigner: TaskAlignedAssigner, scores: ClassScores, boxes: Tensor, scene: Scene) -> Explanation:
    """Explain the assignment; the scene's ground truth has the empty slot, the explanation has not."""
    params, sizes = assigner.params, scene.sizes
    candidates = measure_candidates(scores, boxes, scene.anc_points, scene.ground_truth, params)
    decisions = decide(candidates, sizes, params)
    truths = report_truths(candidates, decisions, scene)
    truths = TruthReport(*(field[:, : sizes.slots - 1] for field in truths))
    ground_truth = GroundTruth(*(field[:, : sizes.slots - 1] for field in scene.ground_truth))
    pairs = report_pairs(candidates, decisions, scene)
    return Explanation(truths, pairs, assignment_of(candidates, decisions, sizes), ground_truth)


def levels_of(strides: Tensor) -> Tensor:
    """Level of each anchor (A,) int64, from the strides (A, 1) of anchors that lie level by level."""
    flat = strides.flatten()
    changes = (flat[1:] != flat[:-1]).long().cumsum(0)
    return torch.cat((torch.zeros_like(flat[:1], dtype=torch.long), changes))


def far_corner(points: Tensor, strides: Tensor) -> Tensor:
    """Width and height (2,) of images in pixels, where the last cells of points (A, 2) with strides (A, 1) end."""
    return (points + strides / 2).amax(dim=0)


def image_size_of(criterion: DetectionLoss, predictions: Predictions) -> tuple[int, int]:
    """(height, width) in pixels of the images that predictions are of."""
    height, width = (int(cells * criterion.strides[0]) for cells in predictions.grid_size)
    return height, width


def _without_empty_slot(shares: LossShares, slots: int) -> LossShares:
    return shares._replace(truth_sums=shares.truth_sums[:, :slots], truth_loss=shares.truth_loss[:, :slots])


def explanation_outputs(explanation: Explanation) -> dict[str, Tensor]:
    """The tensors of an explanation by their names, those of the exported model's outputs, in its order."""
    shares = {} if explanation.shares is None else explanation.shares._asdict()
    return shares | explanation.truths._asdict() | explanation.pairs._asdict()


def explain_document(
    criterion: DetectionLoss,
    preds: RawOutput,
    batch: Mapping[str, Any],
    *,
    pairs: bool = True,
    listed_side: float | None = None,
) -> dict[str, Any]:
    """Explain a training batch as a document, described in ``yolo_loss.explain.document``.

    Args:
        criterion: As for :func:`explain_loss`.
        preds: As for :func:`explain_loss`.
        batch: As for :func:`explain_loss`.
        pairs: Whether to list the candidates.
        listed_side: Pixels; list also the candidates that ground truths would have with this ``min_box_side``.

    Returns:
        The document, for ``dump_document``.

    Raises:
        ValueError: As :func:`explain_loss`, or ``listed_side`` is below the criterion's ``min_box_side``.
    """
    predictions = join_predictions(preds, criterion.strides, criterion.num_classes, criterion.reg_max)
    explanation = explain_loss(criterion, preds, batch)
    outputs = _arrays(explanation)
    if listed_side is not None:
        outputs = list_outside(outputs, _arrays(explain_loss(_with_side(criterion, listed_side), preds, batch)))
    truth = explanation.ground_truth
    image, *_ = check_batch(batch, len(truth.gt_labels), criterion.num_classes)
    counts = torch.bincount(image.cpu(), minlength=len(truth.gt_labels)).numpy()
    labels, boxes = truth.gt_labels.cpu().numpy(), truth.gt_bboxes.cpu().numpy()
    size = image_size_of(criterion, predictions)
    subject = Subject(labels, boxes, counts, size, level_sizes_of(predictions), parameters_of(criterion))
    return build_document(outputs, subject._replace(listed_side=listed_side), pairs=pairs)


def _arrays(explanation: Explanation) -> dict[str, Any]:
    return {name: tensor.cpu().numpy() for name, tensor in explanation_outputs(explanation).items()}


def _with_side(criterion: DetectionLoss, side: float) -> DetectionLoss:
    """A criterion with a larger ``min_box_side``."""
    own = criterion.assigner.params.min_box_side
    if own is not None and side < own:
        raise ValueError(f"listed_side is {side}, below the min_box_side {own}; give a larger one, or none")
    wide = deepcopy(criterion)
    wide.assigner.min_box_side = side
    return wide


def level_sizes_of(predictions: Predictions) -> list[tuple[int, int]]:
    """Cells (H_i, W_i) of each level, from the anchor points of all."""
    level = levels_of(predictions.strides)
    # The last point of a level is the centre of its last cell.
    last = torch.searchsorted(level, torch.arange(int(level[-1]) + 1, device=level.device), right=True) - 1
    return [(int(y + 0.5), int(x + 0.5)) for x, y in predictions.anchor_points[last].tolist()]


def parameters_of(criterion: DetectionLoss) -> dict[str, Any]:
    """Hyper-parameters of a criterion by the names that contracts have."""
    return {
        "num_classes": criterion.num_classes,
        "strides": list(criterion.strides),
        "reg_max": criterion.reg_max,
        **criterion.assigner.params._asdict(),
        "class_loss": criterion.class_loss,
        "gains": criterion.gains._asdict(),
    }

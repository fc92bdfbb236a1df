"""Thin wrappers around untouched modules: what becomes a graph.

``yolo_assigner.export.to_onnx.graphs`` names the tensors, in this order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.models import DetectionModel
from yolo_loss import DetectionLoss, Gains, GroundTruth, LossResult, TaskAlignedAssigner
from yolo_loss.assigner import IMPLEMENTATIONS
from yolo_loss.assignment.targets import labels_and_boxes, scores_by_comparison, scores_by_scatter
from yolo_loss.collate import add_empty_slot
from yolo_loss.execution.channels import Channels, ClassScores
from yolo_loss.predictions import join_predictions
from yolo_loss.reductions.foreground import RowGradients, Rows
from yolo_loss.structures import Assignment, Predictions

# A scatter is the faster way in ONNX Runtime; graphs for TensorRT do without.
SCORES = {"dense": scores_by_comparison, "sparse": scores_by_scatter}


class AssignerGraph(nn.Module):
    """``TaskAlignedAssigner`` as a graph in which B, M (0 too), A and C may be any size."""

    def __init__(self, assigner: TaskAlignedAssigner) -> None:
        super().__init__()
        self.assigner = assigner

    def forward(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
    ) -> tuple[Tensor, ...]:
        """The inputs of the assigner to its targets and their weights."""
        # Maxima over an empty axis are errors at run time, so one empty slot stands behind the real ones.
        padded = add_empty_slot(GroundTruth(gt_labels, gt_bboxes, mask_gt))
        scores = ClassScores((Channels(pd_scores.transpose(1, 2), 0, pd_scores.shape[2]),), pd_scores.dtype)
        assignment = self.assigner.assign(scores, pd_bboxes, anc_points, padded)
        return _targets(assignment, padded, pd_scores.shape[2], self.assigner.implementation)


class LossGraph(nn.Module):
    """``DetectionLoss`` as a graph in which B, M (0 too) and the maps' sizes may be anything."""

    def __init__(self, criterion: DetectionLoss) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, feats: list[Tensor], gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor) -> tuple[Tensor, ...]:
        """Raw maps and padded ground truth to the loss, its parts, and the targets."""
        padded = add_empty_slot(GroundTruth(gt_labels, gt_bboxes, mask_gt))
        result = self.criterion.from_padded(_join(self.criterion, feats), padded)
        return _results(self.criterion, result, padded)


class LossGradGraph(LossGraph):
    """The same with the gradient of the loss by each map."""

    def __init__(self, criterion: DetectionLoss) -> None:
        super().__init__(criterion)
        self.derive = RecordedDerivatives(criterion)

    def forward(self, feats: list[Tensor], gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor) -> tuple[Tensor, ...]:
        """As :class:`LossGraph`, then the gradients in the maps' shapes."""
        padded = add_empty_slot(GroundTruth(gt_labels, gt_bboxes, mask_gt))
        result, levels = self.criterion.gradients_from_padded(_join(self.criterion, feats), padded, self.derive)
        gradients = (level.view(feat.shape) for level, feat in zip(levels, feats, strict=True))
        return *_results(self.criterion, result, padded), *gradients


class DetectorLossGraph(nn.Module):
    """A detector in eval mode with the loss of its maps; B, M (0 too), H and W, multiples of 32, may be anything.

    ``yolo_assigner.export.to_onnx.detector`` finds the weights in the graph by this attribute's name, ``detector``.
    """

    def __init__(self, criterion: DetectionLoss, detector: DetectionModel) -> None:
        super().__init__()
        self.detector = detector
        self.loss = LossGraph(criterion)

    def forward(self, images: Tensor, gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor) -> tuple[Tensor, ...]:
        """Pictures and padded ground truth to what :class:`LossGraph` gives, predictions, and the raw maps."""
        predictions, maps = self.detector(images)
        return *self.loss(maps, gt_labels, gt_bboxes, mask_gt), predictions, *maps


def _join(criterion: DetectionLoss, feats: list[Tensor]) -> Predictions:
    return join_predictions(feats, criterion.strides, criterion.num_classes, criterion.reg_max)


def _results(criterion: DetectionLoss, result: LossResult, padded: GroundTruth) -> tuple[Tensor, ...]:
    formulation = criterion.assigner.implementation
    targets = _targets(result.assignment, padded, criterion.num_classes, formulation)
    return result.loss, result.loss_items, result.image_sums, *targets


def _targets(assignment: Assignment, padded: GroundTruth, num_classes: int, formulation: str) -> tuple[Tensor, ...]:
    labels, boxes = labels_and_boxes(assignment, padded)
    scores = SCORES[formulation](labels, assignment.target_weights, num_classes)
    # Without ground truth the label is num_classes. M is no Python number here: the graph must not depend on it.
    # Counted with the empty slot, since some runtimes sum an empty tensor wrongly.
    images = torch.ones_like(padded.gt_labels[:, 0]).sum()
    labels = torch.where(torch.ones_like(padded.gt_labels).sum() == images, num_classes, labels)
    return labels, boxes, scores, assignment.fg_mask, assignment.target_gt_idx, assignment.target_weights


# Rows to record with. Any number may come later; 0 and 1 would be taken for constants.
RECORDED_ROWS = 5


class RecordedDerivatives(nn.Module):
    """``DetectionLoss.row_gradients`` as the plain operations that autograd made of it.

    Args:
        criterion: Whose derivatives.
    """

    def __init__(self, criterion: DetectionLoss) -> None:
        super().__init__()

        def derive(*rows: Tensor) -> RowGradients:
            return criterion.row_gradients(Rows(*rows))

        generator = torch.Generator().manual_seed(0)
        widths = ((4 * criterion.reg_max,), (), (), (4,), (2,))
        example = Rows(*(torch.rand((RECORDED_ROWS, *width), generator=generator) for width in widths))
        # The operations of a backward pass have no translation of their own: they are written as forward ones.
        decompositions: dict[Any, Any] = torch.export.default_decompositions().materialize()
        # It has a translation of its own; decomposed it is the logarithm of numbers that ours is not made for.
        decompositions.pop(torch.ops.aten.softplus.default, None)
        recorded: fx.GraphModule = make_fx(derive, decompositions, tracing_mode="symbolic")(*example)
        self.operations = recorded

    def forward(self, rows: Rows) -> RowGradients:
        """Run them."""
        return RowGradients(*self.operations(*rows))


LOSS_GRAPHS = {"loss": LossGraph, "loss_grad": LossGradGraph}


def build_graph(
    kind: str, numbers: Hyperparameters, formulation: str, detector: DetectionModel | None = None
) -> nn.Module:
    """The module whose forward becomes the graph.

    Args:
        kind: One of ``yolo_assigner.export.contract.KINDS``.
        numbers: Hyper-parameters.
        formulation: How the assignment is computed, ``dense`` or ``sparse``.
        detector: The one of a ``detector_loss``, in eval mode.

    Raises:
        ValueError: A hyper-parameter is out of range.
    """
    if formulation not in IMPLEMENTATIONS:
        raise ValueError(
            f"formulation is {formulation!r}, but a graph has one of {', '.join(IMPLEMENTATIONS)}; choose one"
        )
    if kind == "assigner":
        return AssignerGraph(build_assigner(numbers, formulation)).eval()
    criterion = build_criterion(numbers, formulation)
    if detector is not None:
        return DetectorLossGraph(criterion, detector).eval()
    return LOSS_GRAPHS[kind](criterion).eval()


def build_assigner(numbers: Hyperparameters, formulation: str) -> TaskAlignedAssigner:
    """The assigner of these numbers."""
    return TaskAlignedAssigner(
        numbers.topk,
        numbers.num_classes,
        numbers.alpha,
        numbers.beta,
        numbers.eps,
        implementation=formulation,
        **numbers.options,
    )


def build_criterion(numbers: Hyperparameters, formulation: str) -> DetectionLoss:
    """The criterion of these numbers."""
    return DetectionLoss(
        numbers.num_classes,
        numbers.strides,
        numbers.reg_max,
        topk=numbers.topk,
        alpha=numbers.alpha,
        beta=numbers.beta,
        eps=numbers.eps,
        gains=Gains(*numbers.gains),
        class_loss=numbers.class_loss,
        preset=numbers.preset,
        implementation=formulation,
        **numbers.options,
    )

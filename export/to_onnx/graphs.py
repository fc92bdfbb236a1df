"""Modules that are traced to graphs: thin wrappers around the assigner, the criterion and the detector.

The order of their inputs and outputs is that of ``yolo_assigner.export.specs``, which names the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolo_assigner.export.contract import SPARSE_KINDS
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.specs import extra_input_specs
from yolo_assigner.models import DetectionModel
from yolo_assigner.models.head import BranchMaps
from yolo_loss import ClassInputs, DetectionLoss, GroundTruth, LossResult, TaskAlignedAssigner
from yolo_loss.assigner import IMPLEMENTATIONS
from yolo_loss.assignment.targets import labels_and_boxes, scores_by_comparison, scores_by_scatter
from yolo_loss.collate import add_empty_slot
from yolo_loss.end_to_end import combine
from yolo_loss.execution.channels import Channels, ClassScores
from yolo_loss.explain.explain import explain_padded, explanation_outputs
from yolo_loss.predictions import join_predictions
from yolo_loss.structures import Assignment, Predictions

# A scatter is faster in ONNX Runtime, but TensorRT does not support it.
SCORES = {"dense": scores_by_comparison, "sparse": scores_by_scatter}


class AssignerGraph(nn.Module):
    """``TaskAlignedAssigner`` as a graph with dynamic B, M (0 included), A and C."""

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
        """Compute the targets and their weights; inputs and outputs have the shapes of the contract."""
        # A maximum over an empty axis fails at run time, so an empty slot is added.
        padded = add_empty_slot(GroundTruth(gt_labels, gt_bboxes, mask_gt))
        scores = ClassScores((Channels(pd_scores.transpose(1, 2), 0, pd_scores.shape[2]),), pd_scores.dtype)
        assignment = self.assigner.assign(scores, pd_bboxes, anc_points, padded)
        return _targets(assignment, padded, pd_scores.shape[2], self.assigner.implementation)


class LossGraph(nn.Module):
    """``DetectionLoss`` as a graph with dynamic B, M (0 included), I (0 included) and map sizes.

    Args:
        criterion: The criterion.
        further: Names of the inputs that follow the ground truth, fields of ``ClassInputs``.
    """

    def __init__(self, criterion: DetectionLoss, further: Sequence[str] = ()) -> None:
        super().__init__()
        self.criterion = criterion
        self.further = tuple(further)

    def forward(
        self, feats: list[Tensor], gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, *further: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the loss, its parts and the targets of raw maps and padded ground truth."""
        padded = add_empty_slot(GroundTruth(gt_labels, gt_bboxes, mask_gt))
        return _results(self.criterion, self.evaluate(feats, padded, further), padded)

    def evaluate(self, feats: list[Tensor], padded: GroundTruth, further: Sequence[Tensor]) -> LossResult:
        """Compute the loss of raw maps and ground truth with at least one slot."""
        return self.criterion.from_padded(_join(self.criterion, feats), padded, self.class_inputs(further))

    def class_inputs(self, further: Sequence[Tensor]) -> ClassInputs:
        """Name the inputs that follow the ground truth, and add an empty region, so that none of their axes is 0."""
        inputs = ClassInputs(**dict(zip(self.further, further, strict=True)))
        if inputs.ignore_bboxes is None or inputs.mask_ignore is None:
            return inputs
        labels = torch.zeros_like(inputs.mask_ignore, dtype=torch.int64)
        regions = add_empty_slot(GroundTruth(labels, inputs.ignore_bboxes, inputs.mask_ignore))
        return inputs._replace(ignore_bboxes=regions.gt_bboxes, mask_ignore=regions.mask_gt)


class LossGradGraph(LossGraph):
    """``LossGraph`` with the gradient of the loss with respect to each map."""

    def forward(
        self, feats: list[Tensor], gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, *further: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the outputs of :class:`LossGraph`, then the gradients in the maps' shapes."""
        padded = add_empty_slot(GroundTruth(gt_labels, gt_bboxes, mask_gt))
        result, levels = self.criterion.gradients_from_padded(
            _join(self.criterion, feats), padded, self.class_inputs(further)
        )
        gradients = (level.view(feat.shape) for level, feat in zip(levels, feats, strict=True))
        return *_results(self.criterion, result, padded), *gradients


class ExplainGraph(LossGraph):
    """``yolo_loss.explain`` as a graph with dynamic B, M (0 included), I (0 included), map sizes, and P."""

    def forward(
        self, feats: list[Tensor], gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, *further: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the loss with its shares, what became of each ground truth, and of each candidate.

        Of the maps of a detector with two branches those of the one-to-many branch, which come first, are explained.
        """
        maps = feats[: len(self.criterion.strides)]
        predictions, truth = _join(self.criterion, maps), GroundTruth(gt_labels, gt_bboxes, mask_gt)
        explanation = explain_padded(self.criterion, predictions, truth, self.class_inputs(further))
        return tuple(explanation_outputs(explanation).values())


class EndToEndLossGraph(nn.Module):
    """The losses of a one-to-many and a one-to-one branch as a graph, with the inputs of :class:`LossGraph`.

    Args:
        one2many: The loss of the one-to-many branch.
        one2one: The loss of the one-to-one branch.
        share: Share of the one-to-many loss in the loss of both.
    """

    def __init__(self, one2many: LossGraph, one2one: LossGraph, share: float) -> None:
        super().__init__()
        self.one2many = one2many
        self.one2one = one2one
        self.share = share

    def forward(
        self, feats: list[Tensor], gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, *further: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the loss of both branches and the targets of the second; then the losses of each, with the first's.

        ``feats`` are the maps of the one-to-many branch, then those of the one-to-one branch.
        """
        padded = add_empty_slot(GroundTruth(gt_labels, gt_bboxes, mask_gt))
        levels = len(feats) // 2
        many = self.one2many.evaluate(feats[:levels], padded, further)
        one = self.one2one.evaluate(feats[levels:], padded, further)
        _, *own = _results(self.one2one.criterion, one, padded)
        both = combine(many, one, self.share)
        return both.loss, *own, one.loss, many.loss, many.loss_items, many.image_sums, *many.assignment


class DetectorGraph(nn.Module):
    """A detector in eval mode with what is computed from its maps.

    B, M (0 included), H and W (multiples of the largest stride) are dynamic.

    ``yolo_assigner.export.to_onnx.detector`` finds the weights in the graph by the attribute's name, ``detector``.

    Args:
        behind_maps: Takes the maps: the loss, or its explanation.
        detector: The detector.
    """

    def __init__(self, behind_maps: nn.Module, detector: DetectionModel) -> None:
        super().__init__()
        self.detector = detector
        self.behind_maps = behind_maps

    def forward(
        self, images: Tensor, gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, *further: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the outputs of what follows the maps, predictions and raw maps of images and padded ground truth."""
        predictions, maps = self.detector(images)
        levels = all_levels(maps)
        return *self.behind_maps(levels, gt_labels, gt_bboxes, mask_gt, *further), predictions, *levels


def all_levels(maps: list[Tensor] | BranchMaps) -> list[Tensor]:
    """List the maps of a detector, with two branches those of ``one2many``, then those of ``one2one``."""
    return maps if isinstance(maps, list) else [*maps["one2many"], *maps["one2one"]]


def _join(criterion: DetectionLoss, feats: list[Tensor]) -> Predictions:
    return join_predictions(feats, criterion.strides, criterion.num_classes, criterion.reg_max)


def _results(criterion: DetectionLoss, result: LossResult, padded: GroundTruth) -> tuple[Tensor, ...]:
    targets = _targets(result.assignment, padded, criterion.num_classes, criterion.assigner.implementation)
    return result.loss, result.loss_items, result.image_sums, *targets


def _targets(assignment: Assignment, padded: GroundTruth, num_classes: int, implementation: str) -> tuple[Tensor, ...]:
    labels, boxes = labels_and_boxes(assignment, padded)
    scores = SCORES[implementation](labels, assignment.target_weights, num_classes)
    # Without ground truth the label is num_classes. M is compared inside the graph, which must not depend on its value;
    # the empty slot is counted, since some runtimes sum an empty tensor wrongly.
    images = torch.ones_like(padded.gt_labels[:, 0]).sum()
    labels = torch.where(torch.ones_like(padded.gt_labels).sum() == images, num_classes, labels)
    return labels, boxes, scores, assignment.fg_mask, assignment.target_gt_idx, assignment.target_weights


# Graphs of one criterion that the graph of a loss is not part of.
GRAPHS_OF_MAPS = {"loss_grad": LossGradGraph, "explain": ExplainGraph, "detector_explain": ExplainGraph}


def build_graph(
    kind: str, hyperparameters: Hyperparameters, implementation: str, detector: DetectionModel | None = None
) -> nn.Module:
    """Build the module whose forward becomes the graph.

    Args:
        kind: One of ``yolo_assigner.export.contract.KINDS``.
        hyperparameters: Hyper-parameters of the model.
        implementation: Implementation of the assignment, ``dense`` or ``sparse``.
        detector: The detector of a kind that holds one, in eval mode; None: only what follows its maps, which are
            the first input.

    Raises:
        ValueError: The implementation is unknown, or the kind does not have it.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation is {implementation!r}, but a graph has one of {', '.join(IMPLEMENTATIONS)}; choose one"
        )
    if kind in SPARSE_KINDS and implementation != "sparse":
        raise ValueError(
            f"implementation is {implementation!r}, but {kind} lists candidate pairs, which only sparse does; export "
            "it for ONNX Runtime, without --for or --implementation"
        )
    if kind == "assigner":
        assigner = TaskAlignedAssigner(**hyperparameters.assigner_arguments(), implementation=implementation)
        return AssignerGraph(assigner).eval()
    further = [spec.name for spec in extra_input_specs(hyperparameters)]
    graph: nn.Module
    if kind in GRAPHS_OF_MAPS:
        graph = GRAPHS_OF_MAPS[kind](build_criterion(hyperparameters, implementation), further)
    else:
        graph = _build_loss(hyperparameters, implementation, further)
    return (graph if detector is None else DetectorGraph(graph, detector)).eval()


def _build_loss(
    hyperparameters: Hyperparameters, implementation: str, further: Sequence[str]
) -> LossGraph | EndToEndLossGraph:
    loss = LossGraph(build_criterion(hyperparameters, implementation), further)
    if not hyperparameters.end_to_end:
        return loss
    one2one = DetectionLoss(**hyperparameters.one2one_arguments(), implementation=implementation)
    return EndToEndLossGraph(loss, LossGraph(one2one, further), hyperparameters.effective()["one2many_share"])


def build_criterion(hyperparameters: Hyperparameters, implementation: str) -> DetectionLoss:
    """Build the criterion of these hyper-parameters; with two branches that of the one-to-many branch."""
    return DetectionLoss(**hyperparameters.criterion_arguments(), implementation=implementation)

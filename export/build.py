"""From plain numbers to the modules, and from modules to graphs."""

from __future__ import annotations

from torch import nn

from yolo_assigner.export.graphs import AssignerGraph, DetectorLossGraph, LossGradGraph, LossGraph
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.models import DetectionModel
from yolo_loss import DetectionLoss, Gains, TaskAlignedAssigner
from yolo_loss.assigner import FORMULATIONS

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
    if formulation not in FORMULATIONS:
        raise ValueError(
            f"formulation is {formulation!r}, but a graph has one of {', '.join(FORMULATIONS)}; choose one"
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
        formulation=formulation,
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
        formulation=formulation,
        **numbers.options,
    )

"""What exported models are measured by: torch in float64, gradients by plain autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.to_onnx.graphs import build_criterion, build_graph
from yolo_loss import GroundTruth
from yolo_loss.predictions import join_predictions

Inputs = Sequence[Tensor | list[Tensor]]


class Reference:
    """All outputs of a model in its graph's order.

    Args:
        kind: Of the model.
        numbers: Its hyper-parameters.
        formulation: Its formulation.
    """

    def __init__(self, kind: str, numbers: Hyperparameters, formulation: str) -> None:
        self._graph = build_graph("loss" if kind == "loss_grad" else kind, numbers, formulation)
        # The dense formulation is differentiated by autograd alone, without derivatives written or recorded by us.
        self._differentiated = build_criterion(numbers, "dense") if kind == "loss_grad" else None

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """Compute in float64 what the model computes in float32."""
        wide: Any = to_float64(inputs)
        with torch.no_grad():
            outputs = list(self._graph(*wide))
        return outputs + (self._gradients(*wide) if self._differentiated else [])

    def _gradients(self, feats: list[Tensor], *truth: Tensor) -> list[Tensor]:
        criterion = self._differentiated
        assert criterion is not None  # noqa: S101 - for the type checker
        leaves = [feat.requires_grad_() for feat in feats]
        predictions = join_predictions(leaves, criterion.strides, criterion.num_classes, criterion.reg_max)
        return list(torch.autograd.grad(criterion.from_padded(predictions, GroundTruth(*truth)).loss, leaves))


def flatten(inputs: Inputs) -> list[Tensor]:
    """The tensors in the graph's order."""
    return [tensor for item in inputs for tensor in (item if isinstance(item, list) else [item])]


def to_float64(inputs: Inputs) -> list[Tensor | list[Tensor]]:
    """The same inputs with every float widened."""
    return [[_widen(level) for level in item] if isinstance(item, list) else _widen(item) for item in inputs]


def _widen(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor

"""Reference for exported models: torch in float64, with gradients by plain autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.specs import extra_input_specs
from yolo_assigner.export.to_onnx.graphs import build_criterion, build_graph
from yolo_loss import ClassInputs, GroundTruth
from yolo_loss.predictions import join_predictions

Inputs = Sequence[Tensor | list[Tensor]]


class Reference:
    """Computes all outputs of a model in the graph's order.

    Args:
        kind: Kind of the model; of one with a detector what follows its maps, which are the first input.
        hyperparameters: Its hyper-parameters.
        implementation: Its implementation of the assignment.
    """

    def __init__(self, kind: str, hyperparameters: Hyperparameters, implementation: str) -> None:
        self._graph = build_graph("loss" if kind == "loss_grad" else kind, hyperparameters, implementation)
        # The dense implementation is differentiated by autograd alone, without hand-written or recorded derivatives.
        self._further = [spec.name for spec in extra_input_specs(hyperparameters)]
        self._differentiated = build_criterion(hyperparameters, "dense") if kind == "loss_grad" else None

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """Compute the model's outputs in float64."""
        wide: Any = to_float64(inputs)
        with torch.no_grad():
            outputs = list(self._graph(*wide))
        return outputs + (self._gradients(*wide) if self._differentiated else [])

    def _gradients(self, feats: list[Tensor], *others: Tensor) -> list[Tensor]:
        criterion = self._differentiated
        assert criterion is not None  # noqa: S101 - for the type checker
        leaves = [feat.requires_grad_() for feat in feats]
        predictions = join_predictions(leaves, criterion.strides, criterion.num_classes, criterion.reg_max)
        truth, further = GroundTruth(*others[:3]), ClassInputs(**dict(zip(self._further, others[3:], strict=True)))
        return list(torch.autograd.grad(criterion.from_padded(predictions, truth, further).loss, leaves))


def flatten(inputs: Inputs) -> list[Tensor]:
    """Return the tensors in the graph's order."""
    return [tensor for item in inputs for tensor in (item if isinstance(item, list) else [item])]


def to_float64(inputs: Inputs) -> list[Tensor | list[Tensor]]:
    """Convert all float inputs to float64."""
    return [[_widen(level) for level in item] if isinstance(item, list) else _widen(item) for item in inputs]


def _widen(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor

"""Derivatives for a graph: torch.export takes no autograd, so what autograd does is recorded as operations first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from yolo_loss import DetectionLoss
from yolo_loss.reductions.foreground import RowDerivatives, Rows

# Rows to record with. Any number may come later; 0 and 1 would be taken for constants.
RECORDED_ROWS = 5


class RecordedDerivatives(nn.Module):
    """``DetectionLoss.row_derivatives`` as the plain operations that autograd made of it.

    Args:
        criterion: Whose derivatives.
    """

    def __init__(self, criterion: DetectionLoss) -> None:
        super().__init__()

        def derive(*rows: Tensor) -> RowDerivatives:
            return criterion.row_derivatives(Rows(*rows))

        generator = torch.Generator().manual_seed(0)
        widths = ((4 * criterion.reg_max,), (), (), (4,), (2,))
        example = Rows(*(torch.rand((RECORDED_ROWS, *width), generator=generator) for width in widths))
        # The operations of a backward pass have no translation of their own: they are written as forward ones.
        decompositions: dict[Any, Any] = torch.export.default_decompositions().materialize()
        # It has a translation of its own; decomposed it is the logarithm of numbers that ours is not made for.
        decompositions.pop(torch.ops.aten.softplus.default, None)
        recorded: fx.GraphModule = make_fx(derive, decompositions, tracing_mode="symbolic")(*example)
        self.operations = recorded

    def forward(self, rows: Rows) -> RowDerivatives:
        """Run them."""
        return RowDerivatives(*self.operations(*rows))

"""How some torch operators are written in ONNX, where the exporter's own way is slower in ONNX Runtime.

``python -m benchmarks.profile assigner 16 100 --in onnx`` shows what each operator takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import ir, opset20

# The operators' own annotations speak of values that they compute with, not of a graph's.
_op: Any = opset20


def softplus(x: ir.Value, *_: float) -> Any:
    """ONNX's operator is exact for all numbers: torch's threshold would cost a comparison and a selection more."""
    return _op.Softplus(x)


def index_select(x: ir.Value, dim: int, index: ir.Value) -> Any:
    """Single entries of a list need no slices."""
    return _op.GatherElements(x, index, axis=0) if _rank(x) == 1 else _op.Gather(x, index, axis=dim)


def nonzero(x: ir.Value) -> Any:
    """Places in a list are a selection from its numbering."""
    if _rank(x) != 1:
        return _op.Transpose(_op.NonZero(x), perm=[1, 0])
    numbering = _op.Range(0, _op.Squeeze(_op.Shape(x)), 1)
    return _op.Unsqueeze(_op.Compress(numbering, x, axis=0), [1])


def _rank(x: ir.Value) -> int:
    if x.shape is None:
        raise ValueError(f"{x.name} has no known rank")
    return len(x.shape)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.softplus.default: softplus,
    torch.ops.aten.index_select.default: index_select,
    torch.ops.aten.nonzero.default: nonzero,
}

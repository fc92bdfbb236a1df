"""How some torch operators are written in ONNX, where the exporter's own way is slower or rounds by place.

``python -m benchmarks.profile assigner 16 100 --in onnx`` shows what each operator takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import ir, opset20

from yolo_assigner.export.elementary import atan, log1p, softplus

# The operators' own annotations speak of values that they compute with, not of a graph's.
_op: Any = opset20
_Bound = float | ir.Value | None


def index_select(x: ir.Value, dim: int, index: ir.Value) -> Any:
    """Single entries of a list need no slices."""
    return _op.GatherElements(x, index, axis=0) if _rank(x) == 1 else _op.Gather(x, index, axis=dim)


def nonzero(x: ir.Value) -> Any:
    """Places in a list are a selection from its numbering."""
    if _rank(x) != 1:
        return _op.Transpose(_op.NonZero(x), perm=[1, 0])
    numbering = _op.Range(0, _op.Squeeze(_op.Shape(x)), 1)
    return _op.Unsqueeze(_op.Compress(numbering, x, axis=0), [1])


def clamp(x: ir.Value, min: _Bound = None, max: _Bound = None) -> Any:  # noqa: A002 - torch's own names
    """Bounds as maximum and minimum. Clip takes the largest finite number for a bound that is missing, +inf too.

    The bound comes first: OpenVINO's Max and Min give the second argument where one of them is not a number.
    """
    if min is not None:
        x = _op.Max(_bound(min, x), x)
    if max is not None:
        x = _op.Min(_bound(max, x), x)
    return x


def _bound(value: float | ir.Value, like: ir.Value) -> Any:
    if isinstance(value, int):
        value = _op.Constant(value_int=value)
    elif isinstance(value, float):
        value = _op.Constant(value_float=value)
    return _op.CastLike(value, like)


def divide(x: ir.Value, y: int | ir.Value, rounding_mode: str | None = None) -> Any:
    """Quotients of whole numbers that are not negative, without their fractions.

    The exporter's own way divides float32 numbers: wrong from 2^24 on, and in OpenVINO, which multiplies by the
    reciprocal, also for small ones.
    """
    if rounding_mode != "floor" or x.dtype != ir.DataType.INT64:
        raise ValueError(f"a quotient of {x.dtype} in mode {rounding_mode} has no translation; add one to divide")
    return _op.Div(x, _op.CastLike(_op.Constant(value_int=y) if isinstance(y, int) else y, x))


def floor_divide(x: ir.Value, y: int | ir.Value) -> Any:
    """``x // y``, as :func:`divide`."""
    return divide(x, y, "floor")


def sum_of_axes(x: ir.Value, dim: Sequence[int], keepdim: bool = False, *, dtype: int | None = None) -> Any:
    """Sums of floats over all axes but the first are products with ones, a product an image.

    ReduceSum adds in an order that depends on where in memory an image begins, so on the images before it. The products
    are at least as exact, and cost as much as one more pass over the tensor.
    """
    rank, axes = _rank(x), sorted(axis % _rank(x) for axis in dim)
    if (
        x.dtype != ir.DataType.FLOAT
        or dtype is not None
        or keepdim
        or rank not in (2, 3)
        or axes != list(range(1, rank))
    ):
        kept = _op.ReduceSum(x, _op.Constant(value_ints=list(dim)), keepdims=int(keepdim))
        return kept if dtype is None else _op.Cast(kept, to=dtype)
    if len(axes) > 1:
        columns = _op.Transpose(_op.MatMul(_ones(x, 1), x), perm=[0, 2, 1])  # (B, A, 1)
    else:
        columns = _op.Unsqueeze(x, _op.Constant(value_ints=[2]))
    return _op.Squeeze(_op.MatMul(_ones(columns, 1), columns), _op.Constant(value_ints=[1, 2]))


def _ones(x: ir.Value, axis: int) -> Any:
    """(1, 1, N) as many as an axis has entries. On the right side they would make one product of all images."""
    ones = _op.Expand(_op.Constant(value_float=1.0), _op.Shape(x, start=axis, end=axis + 1))
    return _op.Unsqueeze(ones, _op.Constant(value_ints=[0, 1]))


def _rank(x: ir.Value) -> int:
    if x.shape is None:
        raise ValueError(f"{x.name} has no known rank")
    return len(x.shape)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.atan.default: atan,
    torch.ops.aten.clamp.default: clamp,
    torch.ops.aten.div.Tensor_mode: divide,
    torch.ops.aten.div.Scalar_mode: divide,
    torch.ops.aten.floor_divide.default: floor_divide,
    torch.ops.aten.log1p.default: log1p,
    torch.ops.aten.softplus.default: softplus,
    torch.ops.aten.sum.dim_IntList: sum_of_axes,
    torch.ops.aten.index_select.default: index_select,
    torch.ops.aten.nonzero.default: nonzero,
}

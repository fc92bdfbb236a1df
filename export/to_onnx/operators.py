"""Translations of torch operators to ONNX where the exporter's are slower or round differently by position.

``python -m benchmarks.profile assigner 16 100 --in onnx`` measures the time of each operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import ir, opset20

# onnxscript annotates its operators for eager values; here they are called with values of a graph.
_op: Any = opset20
# Coefficients of polynomials in z = t^2, lowest power first.
_ATAN = (-0.333329491, 0.199777096, -0.13877675, 0.0805371187)
_ATANH = (0.333332081, 0.200107637, 0.140009018, 0.140059969)
# ln 2 in two parts; the first has so few digits that small multiples of it are exact.
_LN2_HIGH = 0.693359375
_LN2_LOW = math.log(2) - _LN2_HIGH
# Exponents of the powers of two that are divided out of 1 + x, which may be up to 2^16.
_POWERS = (8, 4, 2, 1)
_Bound = float | ir.Value | None


def index_select(x: ir.Value, dim: int, index: ir.Value) -> Any:
    """Translate ``index_select``; of a vector single elements are gathered, which is faster than slices."""
    return _op.GatherElements(x, index, axis=0) if _rank(x) == 1 else _op.Gather(x, index, axis=dim)


def nonzero(x: ir.Value) -> Any:
    """Translate ``nonzero``; of a vector the indices are compressed, which is faster than NonZero."""
    if _rank(x) != 1:
        return _op.Transpose(_op.NonZero(x), perm=[1, 0])
    indices = _op.Range(0, _op.Squeeze(_op.Shape(x)), 1)
    return _op.Unsqueeze(_op.Compress(indices, x, axis=0), [1])


def clamp(x: ir.Value, min: _Bound = None, max: _Bound = None) -> Any:  # noqa: A002 - torch's names
    """Translate ``clamp`` to Max and Min, because Clip without a bound turns infinity to the largest finite number.

    The bound is the first argument: OpenVINO's Max and Min return the second where one of them is NaN.
    """
    if min is not None:
        x = _op.Max(_bound(min, x), x)
    if max is not None:
        x = _op.Min(_bound(max, x), x)
    return x


def greater(x: ir.Value, y: ir.Value) -> Any:
    """Translate ``x > y`` to ``y < x``: in OpenVINO 2026.4 on CPUs with AVX-512, Greater is true where one is NaN."""
    return _op.Less(y, x)


def greater_or_equal(x: ir.Value, y: ir.Value) -> Any:
    """Translate ``x >= y`` to ``y <= x``, for the reason of :func:`greater`."""
    return _op.LessOrEqual(y, x)


def batch_norm(
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value,
    mean: ir.Value,
    var: ir.Value,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Any:
    """Translate ``batch_norm`` in eval mode, which alone is exported."""
    if training:
        raise ValueError("batch_norm is in training mode; export the module in eval mode")
    return _op.BatchNormalization(x, weight, bias, mean, var, epsilon=eps, momentum=1 - momentum)


def _bound(value: float | ir.Value, like: ir.Value) -> Any:
    if isinstance(value, int):
        value = _op.Constant(value_int=value)
    elif isinstance(value, float):
        value = _op.Constant(value_float=value)
    return _op.CastLike(value, like)


def divide(x: ir.Value, y: int | ir.Value, rounding_mode: str | None = None) -> Any:
    """Translate the floor of a quotient of non-negative integers.

    The exporter's translation divides in float32, which is wrong from 2^24 on, and in OpenVINO, which multiplies by the
    reciprocal, also for small numbers.
    """
    if rounding_mode != "floor" or x.dtype != ir.DataType.INT64:
        raise ValueError(f"a quotient of {x.dtype} in mode {rounding_mode} has no translation; add one to divide")
    return _op.Div(x, _op.CastLike(_op.Constant(value_int=y) if isinstance(y, int) else y, x))


def floor_divide(x: ir.Value, y: int | ir.Value) -> Any:
    """Translate ``x // y`` by :func:`divide`."""
    return divide(x, y, "floor")


def sum_of_axes(x: ir.Value, dim: Sequence[int], keepdim: bool = False, *, dtype: int | None = None) -> Any:
    """Translate float sums over all axes but the first to matrix products with ones, one product per image.

    The order in which ReduceSum adds depends on an image's position in memory, hence on the images before it. The
    products are at least as exact, and cost as much as one more pass over the tensor.
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


def sort(x: ir.Value, dim: int = -1, descending: bool = False) -> Any:
    """Translate ``sort`` to TopK, which puts the smaller index first among equal values, hence is stable."""
    axis = dim % _rank(x)
    count = _op.Shape(x, start=axis, end=axis + 1)
    return _op.TopK(x, count, axis=axis, largest=int(descending))


def stable_sort(x: ir.Value, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
    """Translate ``sort`` with ``stable``."""
    return sort(x, dim, descending)


def flatten(x: ir.Value, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Translate ``flatten`` to one Reshape."""
    if not _rank(x):
        return _op.Reshape(x, _op.Constant(value_ints=[1]))
    start, stop = start_dim % _rank(x), end_dim % _rank(x) + 1
    joined = [size for size in list(x.shape or ())[start:stop] if isinstance(size, int)]
    # A known size, because -1 has no value where an axis before is empty.
    return _reshape_axes(x, start, stop, [math.prod(joined) if len(joined) == stop - start else -1])


def unflatten(x: ir.Value, dim: int, sizes: Sequence[int | ir.Value]) -> Any:
    """Translate ``unflatten`` to one Reshape."""
    start = dim % _rank(x)
    return _reshape_axes(x, start, start + 1, sizes)


def _reshape_axes(x: ir.Value, start: int, stop: int, sizes: Sequence[int | ir.Value]) -> Any:
    """Give the axes from ``start`` to ``stop`` other sizes; zeros keep the axes before."""
    shape: list[Any] = [*[0] * start, *sizes, *list(x.shape or ())[stop:]]
    if all(isinstance(size, int) for size in shape):
        return _op.Reshape(x, _op.Constant(value_ints=shape))
    parts = [
        _op.Constant(value_ints=[size]) if isinstance(size, int) else _op.Reshape(size, _op.Constant(value_ints=[1]))
        for size in shape[: start + len(sizes)]
    ]
    if stop < _rank(x):
        parts.append(_op.Shape(x, start=stop))
    return _op.Reshape(x, _op.Concat(*parts, axis=0))


def _ones(x: ir.Value, axis: int) -> Any:
    # (1, 1, N) for an axis of size N. As the right factor, ones would make one product of all images.
    ones = _op.Expand(_op.Constant(value_float=1.0), _op.Shape(x, start=axis, end=axis + 1))
    return _op.Unsqueeze(ones, _op.Constant(value_ints=[0, 1]))


def _rank(x: ir.Value) -> int:
    if x.shape is None:
        raise ValueError(f"{x.name} has no known rank")
    return len(x.shape)


def atan(x: ir.Value) -> Any:
    """Translate ``atan`` for all numbers, reduced to r <= 1 by complements and to t <= tan(pi / 8) by differences."""
    size = _op.Abs(x)
    # The bounds come first, as in `clamp`.
    r = _op.Div(_op.Min(1.0, size), _op.Max(1.0, size))
    steep = _is(_op.Less(math.tan(math.pi / 8), r))
    t = _op.Div(_op.Sub(r, steep), _op.Add(_op.Mul(steep, r), 1.0))
    z = _op.Mul(t, t)
    angle = _op.Add(t, _op.Mul(t, _op.Mul(z, _polynomial(z, _ATAN))))
    angle = _op.Add(angle, _op.Mul(steep, math.pi / 4))
    large = _is(_op.Less(1.0, size))
    angle = _op.Add(_op.Mul(angle, _op.Sub(1.0, _op.Add(large, large))), _op.Mul(large, math.pi / 2))
    return _op.Mul(angle, _op.Sign(x))


def log1p(x: ir.Value) -> Any:
    """Translate ``log1p`` for x from 0 to 2^16 - 1, the only range that the loss uses.

    1 + x would lose the digits of a small x, so log(1 + x) = 2 atanh(x / (x + 2)), and powers of two are divided out
    of 1 + x by x -> x / 2^k - (1 - 2^-k).
    """
    powers: Any = None
    for power in _POWERS:
        big = _is(_op.LessOrEqual(2.0**power - 1, x))
        less = _op.Mul(big, 1 - 2.0**-power)
        x = _op.Sub(_op.Mul(x, _op.Sub(1.0, less)), less)
        taken = _op.Mul(big, float(power))
        powers = taken if powers is None else _op.Add(powers, taken)
    low = _op.Add(_log1p_up_to_1(x), _op.Mul(powers, _LN2_LOW))
    return _op.Add(_op.Mul(powers, _LN2_HIGH), low)


def softplus(x: ir.Value, *_: float) -> Any:
    """Translate ``softplus`` as max(x, 0) + log(1 + e^-|x|), exact for all numbers, hence without threshold."""
    return _op.Add(_op.Max(0.0, x), _log1p_up_to_1(_op.Exp(_op.Neg(_op.Abs(x)))))


def _is(condition: Any) -> Any:
    # 1 or 0 to multiply with, because Where costs ONNX Runtime as much as twenty products.
    return _op.Cast(condition, to=ir.DataType.FLOAT.value)


def _log1p_up_to_1(x: ir.Value) -> Any:
    t = _op.Div(x, _op.Add(x, 2.0))
    z = _op.Mul(t, t)
    twice = _op.Add(t, t)
    return _op.Add(twice, _op.Mul(twice, _op.Mul(z, _polynomial(z, _ATANH))))


def _polynomial(z: Any, coefficients: tuple[float, ...]) -> Any:
    *rest, value = coefficients
    result: Any = value
    for coefficient in reversed(rest):
        result = _op.Add(_op.Mul(z, result), coefficient)
    return result


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.atan.default: atan,
    torch.ops.aten.batch_norm.default: batch_norm,
    torch.ops.aten.clamp.default: clamp,
    torch.ops.aten.div.Tensor_mode: divide,
    torch.ops.aten.div.Scalar_mode: divide,
    torch.ops.aten.flatten.using_ints: flatten,
    torch.ops.aten.floor_divide.default: floor_divide,
    torch.ops.aten.ge.Scalar: greater_or_equal,
    torch.ops.aten.ge.Tensor: greater_or_equal,
    torch.ops.aten.gt.Scalar: greater,
    torch.ops.aten.gt.Tensor: greater,
    torch.ops.aten.log1p.default: log1p,
    torch.ops.aten.softplus.default: softplus,
    torch.ops.aten.sort.default: sort,
    torch.ops.aten.sort.stable: stable_sort,
    torch.ops.aten.sum.dim_IntList: sum_of_axes,
    torch.ops.aten.index_select.default: index_select,
    torch.ops.aten.nonzero.default: nonzero,
    torch.ops.aten.unflatten.int: unflatten,
}

"""Arc tangent and logarithm written in basic operations.

A runtime's own kernels round them one way in its vector loop and another way beside it: ONNX Runtime's Atan, Log and
Softplus on a CPU change the last bit of a number with its place in the tensor. Basic operations are rounded as IEEE 754
says, wherever the number stands, so the results of an image do not depend on the images beside it.

The polynomials are near-minimax fits in z = t^2, relative error 2.1e-08 (atan, |t| <= tan(pi/8)) and 4.5e-09 (log1p,
|t| <= 1/3). In float32 both are within three units in the last place, which ``tests/export/test_elementary.py`` checks.
"""

from __future__ import annotations

import math
from typing import Any

from onnxscript import ir, opset20

# The operators' own annotations speak of values that they compute with, not of a graph's.
_op: Any = opset20

_ATAN = (-0.333329491, 0.199777096, -0.13877675, 0.0805371187)
_ATANH = (0.333332081, 0.200107637, 0.140009018, 0.140059969)
# ln 2 in two parts, of which the first has so few digits that small multiples of it are exact.
_LN2_HIGH = 0.693359375
_LN2_LOW = math.log(2) - _LN2_HIGH
# Powers of two that are divided out of 1 + x, which so may be up to 2^16.
_POWERS = (8, 4, 2, 1)


def atan(x: ir.Value) -> Any:
    """For all numbers. Complements of angles leave r up to 1, differences leave t up to tan(pi / 8)."""
    size = _op.Abs(x)
    # Bounds first, as in `translations.clamp`.
    r = _op.Div(_op.Min(1.0, size), _op.Max(1.0, size))
    steep = _is(_op.Greater(r, math.tan(math.pi / 8)))
    t = _op.Div(_op.Sub(r, steep), _op.Add(_op.Mul(steep, r), 1.0))
    z = _op.Mul(t, t)
    angle = _op.Add(t, _op.Mul(t, _op.Mul(z, _polynomial(z, _ATAN))))
    angle = _op.Add(angle, _op.Mul(steep, math.pi / 4))
    large = _is(_op.Greater(size, 1.0))
    angle = _op.Add(_op.Mul(angle, _op.Sub(1.0, _op.Add(large, large))), _op.Mul(large, math.pi / 2))
    return _op.Mul(angle, _op.Sign(x))


def log1p(x: ir.Value) -> Any:
    """Of x from 0 to 2^16 - 1, which is all that the loss needs; nothing else may be asked.

    Without 1 + x, which would lose the digits of a small x: log(1 + x) = 2 atanh(x / (x + 2)), and powers of two are
    taken out of 1 + x by x -> x / 2^k - (1 - 2^-k).
    """
    powers: Any = None
    for power in _POWERS:
        big = _is(_op.GreaterOrEqual(x, 2.0**power - 1))
        less = _op.Mul(big, 1 - 2.0**-power)
        x = _op.Sub(_op.Mul(x, _op.Sub(1.0, less)), less)
        taken = _op.Mul(big, float(power))
        powers = taken if powers is None else _op.Add(powers, taken)
    low = _op.Add(_log1p_up_to_1(x), _op.Mul(powers, _LN2_LOW))
    return _op.Add(_op.Mul(powers, _LN2_HIGH), low)


def softplus(x: ir.Value, *_: float) -> Any:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), exact for all numbers, so that torch's threshold is not needed."""
    return _op.Add(_op.Max(0.0, x), _log1p_up_to_1(_op.Exp(_op.Neg(_op.Abs(x)))))


def _is(condition: Any) -> Any:
    """1 or 0, to multiply with: a selection costs ONNX Runtime as much as twenty products."""
    return _op.Cast(condition, to=ir.DataType.FLOAT.value)


def _log1p_up_to_1(x: ir.Value) -> Any:
    t = _op.Div(x, _op.Add(x, 2.0))
    z = _op.Mul(t, t)
    twice = _op.Add(t, t)
    return _op.Add(twice, _op.Mul(twice, _op.Mul(z, _polynomial(z, _ATANH))))


def _polynomial(z: Any, coefficients: tuple[float, ...]) -> Any:
    """Horner's scheme."""
    *rest, value = coefficients
    result: Any = value
    for coefficient in reversed(rest):
        result = _op.Add(_op.Mul(z, result), coefficient)
    return result

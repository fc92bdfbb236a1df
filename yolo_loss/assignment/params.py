"""Hyper-parameters of the assignment, and what every implementation computes from them in the same way."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from yolo_loss.option_checks import real_number, whole_number

# Largest exponent that is computed by multiplication.
MAX_PRODUCT = 16


class AssignerParams(NamedTuple):
    """Hyper-parameters of the assignment: the one list of their names, defaults and checks.

    ``TaskAlignedAssigner`` takes, stores and prints whatever is listed here.

    Attributes:
        topk: Candidates k per ground truth.
        alpha: Exponent of the class score.
        beta: Exponent of the IoU.
        eps: Margin inside a box, and keeps the normalized alignment score finite.
        min_box_side: Boxes with a shorter side are enlarged to this many pixels to find candidates; None: as they are.
        topk2: Anchors that each ground truth keeps in the end; None: all it won.
    """

    topk: Annotated[int, whole_number] = 13
    alpha: Annotated[float, real_number] = 1.0
    beta: Annotated[float, real_number] = 6.0
    eps: Annotated[float, real_number] = 1e-9
    min_box_side: Annotated[float | None, real_number] = None
    topk2: Annotated[int | None, whole_number] = None

    @classmethod
    def checked(cls, *values: Any, **named: Any) -> AssignerParams:
        """Build from unchecked values: 10.0 counts as 10, and scalars of numpy or torch as numbers.

        Args:
            *values: In the order of the attributes.
            **named: By the attributes' names. What is missing has its default; None stays None where it is the default.

        Raises:
            TypeError: A name is unknown.
            ValueError: A count is not positive, or a number is negative or not finite.
        """
        given = cls(*values, **named)
        return cls(*(_check(name, value) for name, value in zip(cls._fields, given, strict=True)))

    def max_assigned(self, slots: int) -> int:
        """Upper bound of the foreground anchors of an image with this many ground-truth slots."""
        return slots * (self.topk if self.topk2 is None else min(self.topk, self.topk2))


_HINTS = get_type_hints(AssignerParams, include_extras=True)
_CHECKS = {name: _HINTS[name].__metadata__[0] for name in AssignerParams._fields}


def _check(name: str, value: Any) -> Any:
    optional = AssignerParams._field_defaults[name] is None
    return None if value is None and optional else _CHECKS[name](name, value)


def power(base: Tensor, exponent: float) -> Tensor:
    """Compute base^exponent, for whole and half exponents up to 16.5 by multiplication.

    torch's vectorised power and the scalar one, used for the remainder of a vector, differ in the last bit, so the
    result would depend on an element's position. Products, roots, exponentials and logarithms do not.

    Args:
        base: Any shape, not negative.
        exponent: Not negative.

    Returns:
        The base's shape and dtype.
    """
    whole = int(exponent)
    # Comparisons specialise a compiled kernel on the exponent; without one the compiler makes it a variable.
    if whole == exponent and 1 <= whole <= MAX_PRODUCT:
        return _whole_power(base, whole)
    if exponent == 0:
        return torch.ones_like(base)
    if whole + 0.5 != exponent or whole > MAX_PRODUCT:
        return _other_power(base, exponent)
    root = base.sqrt()
    return root if whole == 0 else _whole_power(base, whole) * root


def _whole_power(base: Tensor, whole: int) -> Tensor:
    square = base
    while whole % 2 == 0:
        square, whole = square * square, whole // 2
    result = square
    while whole > 1:
        square, whole = square * square, whole // 2
        if whole % 2:
            result = result * square
    return result


def _other_power(base: Tensor, exponent: float) -> Tensor:
    if torch.compiler.is_compiling():
        return base.pow(exponent)
    # In float64, where the logarithm's rounding error times the exponent stays far below float32 precision.
    return torch.exp(exponent * torch.log(base.double())).to(base.dtype)


def enlarge(boxes: Tensor, min_side: float | None) -> Tensor:
    """Enlarge sides below ``min_side`` to it about the box's centre, to find candidates.

    Args:
        boxes: (..., 4) pixel xyxy.
        min_side: Pixels; None: boxes stay as they are.

    Returns:
        (..., 4) pixel xyxy; boxes that are large enough are unchanged to the bit.
    """
    if min_side is None:
        return boxes
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    small = (bottom_right - top_left) < min_side
    centre = (top_left + bottom_right) / 2
    half = min_side / 2
    return torch.cat(
        (torch.where(small, centre - half, top_left), torch.where(small, centre + half, bottom_right)), dim=-1
    )

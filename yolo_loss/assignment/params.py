"""Hyper-parameters of the assignment, and what every implementation does with them in the same way."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from yolo_loss.option_checks import real_number, whole_number

_LARGEST_PRODUCT = 16


class AssignerParams(NamedTuple):
    """Hyper-parameters of the assignment.

    Attributes:
        topk: Candidates k per ground truth.
        alpha: Exponent of the class score.
        beta: Exponent of the overlap.
        eps: Margin inside a box, and what keeps the soft score finite.
        min_box_side: Boxes with a shorter side count as this many pixels when candidates are sought; None: as they are.
        topk2: Anchors that each ground truth keeps in the end; None: all it won.
    """

    topk: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    eps: float = 1e-9
    min_box_side: float | None = None
    topk2: int | None = None

    @classmethod
    def checked(
        cls, topk: Any, alpha: Any, beta: Any, eps: Any, min_box_side: Any = None, topk2: Any = None
    ) -> AssignerParams:
        """From whatever a caller gives, 10.0 for 10 or a number of numpy.

        Raises:
            ValueError: A count is not positive, or a number is negative or not finite.
        """
        return cls(
            whole_number("topk", topk),
            real_number("alpha", alpha),
            real_number("beta", beta),
            real_number("eps", eps),
            None if min_box_side is None else real_number("min_box_side", min_box_side),
            None if topk2 is None else whole_number("topk2", topk2),
        )

    def max_assigned(self, slots: int) -> int:
        """How many anchors of an image with so many ground truths are foreground at most."""
        return slots * (self.topk if self.topk2 is None else min(self.topk, self.topk2))


def power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent, whole and half exponents up to 16.5 by multiplication.

    torch's vector routine for powers and the scalar one, which takes what a vector does not fill, differ in the last
    bit: the result would depend on an entry's place in the tensor. Products, roots, exponentials and logarithms do not.

    Args:
        base: Any shape, not negative.
        exponent: Not negative.

    Returns:
        Of the base's shape.
    """
    whole = int(exponent)
    # Compared, not computed with: a compiler takes a number that is only computed with for one that may change.
    if whole == exponent and 1 <= whole <= _LARGEST_PRODUCT:
        return _whole_power(base, whole)
    if exponent == 0:
        return torch.ones_like(base)
    if whole + 0.5 != exponent or whole > _LARGEST_PRODUCT:
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
    # In float64, where the rounding of the logarithm, times the exponent, is still far below that of float32.
    return torch.exp(exponent * torch.log(base.double())).to(base.dtype)


def candidate_areas(boxes: Tensor, params: AssignerParams) -> Tensor:
    """Where candidates are sought: in the boxes, (..., 4) pixel xyxy, or in larger ones about the same centres."""
    return boxes if params.min_box_side is None else enlarge(boxes, params.min_box_side)


def enlarge(boxes: Tensor, min_side: float) -> Tensor:
    """Sides below ``min_side`` grow to it about the box's centre.

    Args:
        boxes: (..., 4) pixel xyxy.
        min_side: Pixels.

    Returns:
        (..., 4) pixel xyxy; boxes that are large enough keep their bits.
    """
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    small = (bottom_right - top_left) < min_side
    centre = (top_left + bottom_right) / 2
    half = min_side / 2
    return torch.cat(
        (torch.where(small, centre - half, top_left), torch.where(small, centre + half, bottom_right)), dim=-1
    )

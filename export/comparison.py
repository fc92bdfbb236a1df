"""Outputs of an exported model beside their reference. Results are data; the caller decides what fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from yolo_assigner.export.samples import Case

# How far float32 may lie from float64, relative to the output's largest magnitude (at least 1, but for gradients):
# u^6 multiplies the rounding of an overlap by six. Labels, masks and indices must be equal.
TOLERANCE = 1e-5
SMALLEST_GRADIENT = 1e-6


class Difference(NamedTuple):
    """One output of one case beside its reference.

    Attributes:
        case: Sizes of the input.
        output: Name.
        largest: Largest absolute difference over the largest magnitude, which counts as 1 at least but for gradients;
            for labels, masks and indices the number of entries that differ.
        tolerance: What ``largest`` may be.
    """

    case: Case
    output: str
    largest: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance. Not a number never is."""
        return self.largest <= self.tolerance


def compare(
    case: Case, got: Mapping[str, NDArray[Any]], want: Mapping[str, Tensor], tolerance: float = TOLERANCE
) -> list[Difference]:
    """Compare outputs by name.

    Args:
        case: Sizes of the input.
        got: What the model gave, a superset of what is wanted.
        want: What it should have given, floats in float64.
        tolerance: What a float output may differ by, relative to its largest magnitude.
    """
    return [Difference(case, name, *_compare(name, got[name], want[name].numpy(), tolerance)) for name in want]


def _compare(name: str, got: NDArray[Any], want: NDArray[Any], tolerance: float) -> tuple[float, float]:
    if got.shape != want.shape:
        return float("inf"), tolerance
    if want.dtype.kind != "f":
        return float(np.count_nonzero(got != want)), 0.0
    if want.size == 0:
        return 0.0, tolerance
    largest = float(np.abs(want).max())
    # Gradients shrink with the number of anchors: their own largest one is what they are measured by.
    scale = max(SMALLEST_GRADIENT, largest) if name.startswith("grad_") else max(1.0, largest)
    return float(np.abs(got.astype(np.float64) - want).max()) / scale, tolerance

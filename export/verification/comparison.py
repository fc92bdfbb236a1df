"""Outputs of an exported model beside their reference. Results are data; the caller decides what fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import (
    Case,
    pyramid,
    sample_assigner_inputs,
    sample_detector_inputs,
    sample_loss_inputs,
)

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


def verification_cases(kind: str, numbers: Hyperparameters) -> list[Case]:
    """Sizes from the smallest to the usual, square and not, with and without ground truth."""
    classes = numbers.num_classes
    if kind == "detector_loss":
        # Of pictures: the network costs far more than the loss, which has cases of its own.
        sizes = [(1, 0, (96, 64)), (1, 1, (32, 32)), (2, 5, (320, 256))]
        return [Case(batch, slots, pyramid(*image, numbers.strides), classes) for batch, slots, image in sizes]
    sizes = [
        (1, 0, (96, 64)),
        (1, 1, (32, 32)),  # fewer anchors than candidates asked for, where topk is large
        (3, 7, (320, 256)),
        (2, 60, (416, 640)),
        (5, 0, (128, 96)),
        (1, 40, (32, 64)),  # more ground truths than some levels have cells
    ]
    cases = [Case(batch, slots, pyramid(*image, numbers.strides), classes) for batch, slots, image in sizes]
    # Overlaps so small that eps decides their soft scores: a graph that lost it is found here.
    cases.append(cases[2]._replace(weak=True))
    if kind == "assigner":
        cases += [cases[2]._replace(num_classes=1), cases[2]._replace(num_classes=classes + 5)]
    return cases


def case_inputs(kind: str, numbers: Hyperparameters, case: Case, seed: int) -> Sequence[Tensor | list[Tensor]]:
    """Seeded inputs of a model for a case."""
    if kind == "assigner":
        return sample_assigner_inputs(case, numbers.strides, seed)
    if kind == "detector_loss":
        return sample_detector_inputs(case, numbers.strides, seed)
    return sample_loss_inputs(case, numbers.strides, numbers.reg_max, seed)

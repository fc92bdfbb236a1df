"""Comparison of a model's outputs with their reference, and the sizes of the inputs for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from yolo_assigner.export.contract import DETECTOR_KINDS
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case, pyramid

# Largest difference between float32 and float64, relative to the output's largest magnitude (at least 1, except for
# gradients): IoU^6 multiplies the rounding error of an IoU by six. Labels, masks and indices must be equal.
TOLERANCE = 1e-5
SMALLEST_GRADIENT = 1e-6


class Difference(NamedTuple):
    """Difference between one output and its reference, for one case.

    Attributes:
        case: Sizes of the input.
        output: Name of the output.
        largest: Largest absolute difference divided by the largest magnitude, which is taken as at least 1 except for
            gradients; for labels, masks and indices the number of entries that differ.
        tolerance: Largest allowed value of ``largest``.
    """

    case: Case
    output: str
    largest: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.largest <= self.tolerance


def compare(
    case: Case, got: Mapping[str, NDArray[Any]], want: Mapping[str, Tensor], tolerance: float = TOLERANCE
) -> list[Difference]:
    """Compare outputs by name.

    Args:
        case: Sizes of the input.
        got: Outputs of the model, at least those of ``want``.
        want: Reference outputs, floats in float64.
        tolerance: Tolerance of float outputs, relative to their largest magnitude.
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
    # Gradients shrink with the number of anchors, so they are measured by their own largest one.
    scale = max(SMALLEST_GRADIENT, largest) if name.startswith("grad_") else max(1.0, largest)
    return float(np.abs(got.astype(np.float64) - want).max()) / scale, tolerance


def verification_cases(kind: str, hyperparameters: Hyperparameters) -> list[Case]:
    """Return sizes from the smallest to usual ones, square or not, with and without ground truth.

    Images are whole cells of the coarsest map.
    """
    classes = hyperparameters.num_classes
    if kind in DETECTOR_KINDS:
        # Few cases of images, since the network is slow; what follows the maps is verified with the cases of `loss`.
        sizes = [(1, 0, (96, 64)), (1, 1, (32, 32)), (2, 5, (320, 256))]
        return [_case(batch, slots, image, hyperparameters) for batch, slots, image in sizes]
    sizes = [
        (1, 0, (96, 64)),
        (1, 1, (32, 32)),  # fewer anchors than candidates, for a large topk
        (3, 7, (320, 256)),
        (2, 60, (416, 640)),
        (5, 0, (128, 96)),
        (1, 40, (32, 64)),  # more ground truths than some levels have cells
    ]
    cases = [_case(batch, slots, image, hyperparameters) for batch, slots, image in sizes]
    # IoUs so small that eps decides the normalized alignment scores, which reveals a graph that lost eps.
    cases.append(cases[2]._replace(weak=True))
    cases = [case._replace(regions=place % 4) for place, case in enumerate(cases)]
    if kind == "assigner":
        cases += [cases[2]._replace(num_classes=1), cases[2]._replace(num_classes=classes + 5)]
        # Points of all images, and of each.
        cases = [case._replace(point_sets=case.batch if place % 2 else 1) for place, case in enumerate(cases)]
    return cases


def _case(batch: int, slots: int, image: tuple[int, int], hyperparameters: Hyperparameters) -> Case:
    """Make a case of an image whose sides are multiples of 32, enlarged where the coarsest stride is larger."""
    strides = hyperparameters.strides
    scale = max(1, int(strides[-1]) // 32)
    return Case(batch, slots, pyramid(image[0] * scale, image[1] * scale, strides), hyperparameters.num_classes)

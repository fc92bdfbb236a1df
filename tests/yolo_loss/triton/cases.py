"""Small inputs for the kernels in Triton's interpreter, and the plain modules in float64 beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from yolo_assigner.export.samples import Case, pyramid, sample_loss_inputs
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.predictions import join_predictions
from yolo_loss.structures import ClassInputs, LossResult, Predictions
from yolo_loss.triton.launch import available

STRIDES = (8.0, 16.0, 32.0)
SIZE = (64, 96)
CLASSES = 3
# numpy warns of what is computed for elements that are then left out; a GPU does the same without a word.
interpreted = [
    pytest.mark.skipif(
        not available() or os.environ.get("TRITON_INTERPRET") != "1",
        reason="needs Triton's interpreter; `make test-triton` runs it",
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
NO_INPUTS = ClassInputs()


class Sample(NamedTuple):
    """Maps and padded ground truth, float32."""

    maps: list[Tensor]
    truth: GroundTruth


class Compared(NamedTuple):
    """Result and gradients, float64."""

    result: LossResult
    gradients: list[Tensor]


def sample(
    slots: int = 4, reg_max: int = 16, seed: int = 4, strides: Sequence[float] = STRIDES, size: tuple[int, int] = SIZE
) -> Sample:
    """Seeded inputs for ``CLASSES`` classes and 2 images."""
    maps, *truth = sample_loss_inputs(
        Case(2, slots, pyramid(*size, strides), CLASSES), tuple(strides), reg_max, seed=seed
    )
    return Sample(maps, GroundTruth(*truth))


def criterion(
    implementation: str, reg_max: int = 16, strides: Sequence[float] = STRIDES, **options: Any
) -> DetectionLoss:
    """The loss of the samples."""
    return DetectionLoss(CLASSES, strides, reg_max, implementation=implementation, **options)


def compare(
    inputs: Sample,
    *,
    reg_max: int = 16,
    strides: Sequence[float] = STRIDES,
    class_inputs: ClassInputs = NO_INPUTS,
    dtype: torch.dtype = torch.float32,
    layout: Callable[[Tensor], Tensor] = Tensor.clone,
    join: Callable[[list[Tensor]], Predictions] | None = None,
    factor: float = 1.0,
    **options: Any,
) -> tuple[Compared, Compared]:
    """Loss and gradients of the kernels, and by the dense implementation in float64 from the same numbers.

    Args:
        inputs: Maps and ground truth.
        reg_max: R.
        strides: Of the levels.
        class_inputs: Weights and regions of the batch.
        dtype: That the kernels' maps have.
        layout: Changes the memory layout of a map.
        join: Makes the predictions; None: ``join_predictions``.
        factor: The loss is multiplied with it before backward.
        **options: Of ``DetectionLoss``.
    """
    results = []
    for name, kind in (("triton", dtype), ("dense", torch.float64)):
        leaves = [layout(level.to(dtype).to(kind)).detach().requires_grad_() for level in inputs.maps]
        joined = join(leaves) if join else join_predictions(leaves, strides, CLASSES, reg_max)
        labels, boxes, mask = inputs.truth
        truth = GroundTruth(labels, boxes.to(joined.anchor_points.dtype), mask)
        result = criterion(name, reg_max, strides, **options).from_padded(joined, truth, class_inputs)
        gradients = torch.autograd.grad(result.loss * factor, leaves)
        assert [gradient.dtype for gradient in gradients] == [kind] * len(leaves)
        results.append(Compared(result, [gradient.double() for gradient in gradients]))
    return results[0], results[1]


def assert_alike(got: Compared, want: Compared, grad_tolerance: float = 2e-5) -> None:
    """The same decisions, and the same numbers as far as float32 and the gradients' type tell them apart."""
    ours, theirs = got.result, want.result
    assert torch.equal(ours.assignment.fg_mask, theirs.assignment.fg_mask)
    assert torch.equal(ours.assignment.target_gt_idx, theirs.assignment.target_gt_idx)
    pairs = [(ours.assignment.target_weights, theirs.assignment.target_weights), (ours.loss, theirs.loss)]
    for one, other in (*pairs, (ours.image_sums, theirs.image_sums), (ours.loss_items, theirs.loss_items)):
        torch.testing.assert_close(one.detach().double(), other.detach(), rtol=2e-5, atol=1e-6)
    for level, (one, other) in enumerate(zip(got.gradients, want.gradients, strict=True)):
        # Beside the level's largest: small ones are differences of large numbers.
        torch.testing.assert_close(one, other, rtol=0, atol=grad_tolerance * float(other.abs().max()), msg=str(level))

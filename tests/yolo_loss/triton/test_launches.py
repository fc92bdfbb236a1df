"""Launches, waiting, bytes and memory of the loss step, counted on tensors without values, and in the interpreter."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.gpu.waiting import no_waiting, on_meta
from tests.yolo_loss.triton.cases import CLASSES, STRIDES, criterion, interpreted, sample
from tests.yolo_loss.triton.launches import META, Recorded, recorded
from tests.yolo_loss.triton.table import bytes_above, count
from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs
from yolo_loss import DetectionLoss, GroundTruth, TaskAlignedAssigner
from yolo_loss.predictions import join_predictions
from yolo_loss.structures import ClassInputs

pytestmark = interpreted
MAX_LAUNCHES = 12


def step(dtype: torch.dtype = torch.float32, reg_max: int = 16, slots: int = 4, **options: Any) -> Recorded:
    """Forward and backward of a training step with the ragged batch on the CPU, as data loaders give it."""
    maps, truth = sample(slots=slots, reg_max=reg_max)
    batch = ragged_batch(truth, (64, 96))
    leaves = [on_meta(level.to(dtype)).requires_grad_() for level in maps]
    with recorded() as found, no_waiting():
        loss, _ = criterion("triton", reg_max, **options)(leaves, batch)
        gradients = torch.autograd.grad(loss, leaves)
    assert [gradient.shape for gradient in gradients] == [level.shape for level in maps]
    return found


def test_the_usual_step() -> None:
    found = step()
    assert [launch.name for launch in found.kernels] == [
        *("write_anchors", "decode", "select_topk", "resolve_conflicts", "weigh"),
        *("class_pass", "box_pass", "combine", "scale_gradients"),
    ]
    assert found.operations == ["ones_like"]  # the derivative of the loss by itself, made by autograd
    assert found.copies == ["_to_copy"] * 3  # labels, boxes and mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"topk2": 1, "class_loss": "varifocal", "alpha": 0.3}])
@pytest.mark.parametrize("reg_max", [16, 1])
@pytest.mark.parametrize("slots", [4, 0])
def test_launches_of_other_steps(dtype: torch.dtype, options: dict[str, Any], reg_max: int, slots: int) -> None:
    found = step(dtype, reg_max, slots, **options)
    assert len(found.kernels) + len(found.operations) <= MAX_LAUNCHES


def test_class_weights_and_regions_need_no_launch() -> None:
    maps, truth = sample()
    weights, regions = torch.empty(2, CLASSES, device=META), torch.empty(2, 3, 4, device=META)
    inputs = ClassInputs(weights, regions, torch.empty(2, 3, 1, dtype=torch.bool, device=META))
    leaves = [on_meta(level).requires_grad_() for level in maps]
    meta_truth = GroundTruth(*(on_meta(field) for field in truth))
    with recorded() as found, no_waiting():
        joined = join_predictions(leaves, STRIDES, CLASSES, 16, criterion("triton").anchor_maker)
        result = criterion("triton", class_weights=(1.0, 2.0, 0.0)).from_padded(joined, meta_truth, inputs)
        torch.autograd.grad(result.loss, leaves)
    assert len(found.kernels) == 9
    assert found.operations == ["ones_like"]


@pytest.mark.parametrize("options", [{}, {"topk2": 1}])
def test_the_assigner(options: dict[str, Any]) -> None:
    case = Case(2, 5, pyramid(64, 96, STRIDES), 4)
    inputs = [on_meta(tensor) for tensor in sample_assigner_inputs(case, STRIDES, seed=0)]
    with recorded() as found, no_waiting():
        result = TaskAlignedAssigner(10, 4, implementation="triton", **options)(*inputs)
    assert result.target_scores.shape == (2, inputs[0].shape[1], 4)
    names = ["prepare", "select_topk", "resolve_conflicts", *(["keep_topk2"] if options else []), "weigh"]
    assert [launch.name for launch in found.kernels] == names
    assert set(found.operations) <= {"clamp"}


def test_an_operation_more_would_be_counted() -> None:
    with recorded() as found:
        torch.empty(3, device=META).view(3, 1).add_(1)
        torch.empty(3, device=META)[:2].to(torch.float64)
    assert found.operations == ["add_", "_to_copy"]


def test_every_launch_of_the_interpreter_is_recorded() -> None:
    """The kernels that really run are those that were counted on tensors without values."""
    from triton.runtime.interpreter import GridExecutor

    ran: list[str] = []
    call = GridExecutor.__call__

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        ran.append(self.fn.__name__)
        return call(self, *arguments, **named)

    maps, truth = sample(slots=2)
    leaves = [level.requires_grad_() for level in maps]
    with mock.patch.object(GridExecutor, "__call__", counted), recorded() as found:
        joined = join_predictions(leaves, STRIDES, CLASSES, 16, criterion("triton").anchor_maker)
        criterion("triton").from_padded(joined, truth).loss.backward()
    assert ran == [launch.name for launch in found.kernels] == [launch.name for launch in step().kernels]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_above_inputs_and_outputs(dtype: torch.dtype) -> None:
    """All that is allocated, as if nothing were freed before the end, at 16 x 300 x 8,400 with 80 classes."""
    assert 0 < bytes_above(dtype, images=16, slots=300) <= 32 * 2**20


def test_the_table_counts_what_the_step_does() -> None:
    counted = count(torch.float32, images=2, slots=4)
    assert counted.launches == 10
    # Class logits and box logits are read once, and their gradients written once; the rest is small beside them.
    maps = 2 * 8400 * 144 * 4
    assert 2 * maps < counted.bytes < 2.2 * maps
    assert counted.floor == 2 * maps + 2 * 4 * 25


def test_criterion_on_meta_keeps_the_results_shapes() -> None:
    maps = [torch.empty(2, 64 + 80, *grid, device=META) for grid in pyramid(640, 640, STRIDES)]
    truth = GroundTruth(*(on_meta(field) for field in sample().truth))
    joined = join_predictions(maps, STRIDES, 80, 16)
    result = DetectionLoss(80, STRIDES, implementation="triton").from_padded(joined, truth)
    shapes: list[Tensor] = [result.loss, result.loss_items, result.image_sums, *result.assignment]
    assert [tuple(tensor.shape) for tensor in shapes] == [(), (3,), (2, 4), *[(2, 8400)] * 3]

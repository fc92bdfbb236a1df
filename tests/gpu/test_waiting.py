"""No part that is meant for a GPU waits for it. Shown without one; ``test_cuda.py`` shows it on a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.waiting import META, WaitsError, no_waiting, on_meta
from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from yolo_loss import DetectionLoss, GroundTruth, TaskAlignedAssigner
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(3, 20, pyramid(160, 224, STRIDES), 4)
WAITING: dict[str, Callable[[Tensor], object]] = {
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x.sum()),
    "if": lambda x: bool(x.sum() > 0),
    "list": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0],
    "write at a mask": lambda x: x.__setitem__(x > 0, 0.0),
    "write a tensor at a mask": lambda x: x.__setitem__(x > 0, x.new_zeros(3)),
    "equal": lambda x: torch.equal(x, x),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x[0].long().bincount(),
    "repeat_interleave": lambda x: x[0].repeat_interleave(x[0].long()),
    "upload": lambda x: torch.zeros(3).to(x.device),
    "copy": lambda x: x.copy_(torch.zeros(3, 4)),
    "download": lambda x: x.cpu(),
    "download, not waited for": lambda x: x.to("cpu", non_blocking=True),
    "tensor": lambda x: torch.tensor((1.0, 2.0), device=x.device),
    "new_tensor": lambda x: x.new_tensor((1.0, 2.0)),
}
ALLOWED: dict[str, Callable[[Tensor], object]] = {
    "index": lambda x: x[[0, 1]][:, x[0].long()],
    "write a number": lambda x: x.__setitem__((slice(None), 0), 3.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "other type": lambda x: x.double(),
    "upload, not waited for": lambda x: torch.zeros(3).to(x.device, torch.float64, non_blocking=True),
    "on the CPU": lambda _: torch.ones(3).nonzero().tolist(),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_found(name: str) -> None:
    with pytest.raises(WaitsError), no_waiting():
        WAITING[name](torch.empty(3, 4, device=META))


@pytest.mark.parametrize("name", ALLOWED)
def test_what_does_not_wait_is_left_alone(name: str) -> None:
    with no_waiting():
        ALLOWED[name](torch.empty(3, 4, device=META))


@pytest.mark.parametrize("implementation", ["auto", "dense"])
@pytest.mark.parametrize("options", [{}, {"topk2": 1, "min_box_side": 16.0}])
@pytest.mark.parametrize("slots", [20, 0])
def test_the_assigner(implementation: str, options: dict[str, Any], slots: int) -> None:
    inputs = [on_meta(tensor) for tensor in sample_assigner_inputs(CASE._replace(slots=slots), STRIDES, seed=0)]
    with no_waiting():
        result = TaskAlignedAssigner(10, 4, implementation=implementation, **options)(*inputs)
    assert result.target_scores.shape == (3, inputs[0].shape[1], 4)


def test_the_sparse_assigner_waits() -> None:
    inputs = [on_meta(tensor) for tensor in sample_assigner_inputs(CASE, STRIDES, seed=0)]
    with pytest.raises(WaitsError), no_waiting():
        TaskAlignedAssigner(10, 4, implementation="sparse")(*inputs)


def loss_inputs(dtype: torch.dtype) -> tuple[list[Tensor], GroundTruth]:
    feats, *rest = sample_loss_inputs(CASE, STRIDES, 16, seed=0)
    return [feat.to(dtype) for feat in feats], GroundTruth(*rest)


@pytest.mark.parametrize("implementation", ["auto", "dense"])
@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_a_training_step(implementation: str, class_loss: str, dtype: torch.dtype, place: str) -> None:
    """Forward and backward, with the batch where data loaders leave it and where a GPU has it."""
    feats, ground_truth = loss_inputs(dtype)
    batch = {name: tensor.to(place) for name, tensor in ragged_batch(ground_truth, (160, 224)).items()}
    # Nobody can know the largest count of a batch on the GPU without asking for it.
    max_boxes = 20 if place == "meta" else None
    criterion = DetectionLoss(4, STRIDES, implementation=implementation, class_loss=class_loss, max_boxes=max_boxes)
    leaves = [on_meta(feat).requires_grad_() for feat in feats]
    with no_waiting():
        loss, _ = criterion(leaves, batch)
        gradients = torch.autograd.grad(loss, leaves)
    assert [gradient.shape for gradient in gradients] == [feat.shape for feat in feats]


@pytest.mark.parametrize("implementation", ["auto", "dense"])
@pytest.mark.parametrize("reg_max", [16, 1])
def test_class_weights_and_regions(implementation: str, reg_max: int) -> None:
    feats, *truth = sample_loss_inputs(CASE, STRIDES, reg_max, seed=0)
    batch: dict[str, Any] = dict(ragged_batch(GroundTruth(*truth), (160, 224)))
    batch |= {"class_weights": torch.rand(3, 4), "ignore_idx": [0, 2, 0], "ignore_bboxes": [[0.5] * 4] * 3}
    criterion = DetectionLoss(4, STRIDES, reg_max, implementation=implementation, class_weights=(1, 0, 2, 1))
    leaves = [on_meta(feat).requires_grad_() for feat in feats]
    with no_waiting():
        loss, _ = criterion(leaves, batch)
        gradients = torch.autograd.grad(loss, leaves)
    assert [gradient.shape for gradient in gradients] == [feat.shape for feat in feats]


@pytest.mark.parametrize("implementation", ["auto", "dense"])
def test_a_head_that_joins_its_levels(implementation: str) -> None:
    feats, ground_truth = loss_inputs(torch.float32)
    joined = on_meta(torch.cat([feat.flatten(2) for feat in feats], dim=2))
    boxes, scores = (part.contiguous().requires_grad_() for part in (joined[:, :64], joined[:, 64:]))
    with no_waiting():
        preds = {"boxes": boxes, "scores": scores, "feats": [on_meta(feat) for feat in feats]}
        loss, _ = DetectionLoss(4, STRIDES, implementation=implementation)(
            preds, ragged_batch(ground_truth, (160, 224))
        )
        assert torch.autograd.grad(loss, [boxes, scores])[1].shape == scores.shape


@pytest.mark.parametrize("implementation", ["auto", "dense"])
def test_gradients_without_autograd(implementation: str) -> None:
    feats, ground_truth = loss_inputs(torch.float32)
    criterion = DetectionLoss(4, STRIDES, implementation=implementation)
    maps, truth = [on_meta(feat) for feat in feats], GroundTruth(*(on_meta(field) for field in ground_truth))
    with no_waiting():
        _, gradients = criterion.gradients_from_padded(join_predictions(maps, STRIDES, 4, 16), truth)
    assert len(gradients) == len(feats)


def test_one_question_is_asked_of_a_batch_on_the_gpu() -> None:
    feats, ground_truth = loss_inputs(torch.float32)
    batch = {name: on_meta(tensor) for name, tensor in ragged_batch(ground_truth, (160, 224)).items()}
    with pytest.raises(WaitsError, match="_local_scalar_dense"), no_waiting():
        DetectionLoss(4, STRIDES)([on_meta(feat) for feat in feats], batch)

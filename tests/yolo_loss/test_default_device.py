"""Tensors are made where their inputs lie, whatever device torch makes others on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from yolo_assigner.models import DetectionModel, DetectorConfig
from yolo_loss import DetectionLoss, GroundTruth, TaskAlignedAssigner
from yolo_loss.assignment.anchor_grid import cached_anchor_grid

STRIDES = (8.0, 16.0, 32.0)


@pytest.fixture
def _elsewhere() -> Iterator[None]:
    """``meta`` stands for a GPU: what is made there by mistake meets no tensor of the CPU."""
    cached_anchor_grid(torch.zeros(1, 2))  # replaces the grid that other tests left in the cache
    torch.set_default_device("meta")
    yield
    torch.set_default_device("cpu")


ASSIGNER_INPUTS = sample_assigner_inputs(Case(2, 40, pyramid(160, 160, STRIDES), 3), STRIDES, seed=0)
FEATS, *TRUTH = sample_loss_inputs(Case(2, 40, pyramid(160, 160, STRIDES), 3), STRIDES, 16, seed=0)
BATCH = ragged_batch(GroundTruth(*TRUTH), (160, 160))


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("implementation", ["auto", "sparse", "dense"])
@pytest.mark.parametrize("topk2", [None, 1])
def test_assigner(implementation: str, topk2: int | None) -> None:
    result = TaskAlignedAssigner(10, 3, 0.5, 6.0, implementation=implementation, topk2=topk2)(*ASSIGNER_INPUTS)
    assert all(field.device.type == "cpu" for field in result)
    assert result.fg_mask.any()


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
@pytest.mark.parametrize("implementation", ["auto", "sparse", "dense"])
def test_loss_and_gradients(implementation: str, class_loss: str) -> None:
    leaves = [feat.clone().requires_grad_() for feat in FEATS]
    loss, items = DetectionLoss(3, STRIDES, implementation=implementation, class_loss=class_loss)(leaves, BATCH)
    loss.backward()
    assert loss.device.type == items.device.type == "cpu"
    assert all(leaf.grad is not None and leaf.grad.device.type == "cpu" for leaf in leaves)


@pytest.mark.usefixtures("_elsewhere")
def test_detector() -> None:
    with torch.device("cpu"):
        detector = DetectionModel(DetectorConfig("n", 3)).eval()
    with torch.no_grad():
        predictions, _ = detector(torch.zeros((1, 3, 64, 64), device="cpu"))
    assert predictions.device.type == "cpu"

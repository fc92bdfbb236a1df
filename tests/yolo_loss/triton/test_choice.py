"""Where the kernels are chosen, and what computes in their place. Needs neither Triton nor its interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.yolo_loss.triton.cases import CLASSES, STRIDES, criterion, sample
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import TaskAlignedAssigner
from yolo_loss.assignment.params import AssignerParams
from yolo_loss.predictions import join_predictions
from yolo_loss.triton import launch, loss

CASE = Case(2, 9, pyramid(96, 128, STRIDES), 4)
needs_triton = pytest.mark.skipif(
    not launch.available(), reason="triton is not installed; pip install 'yolo-assigner[triton]'"
)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolo_loss.assigner.available", lambda: False)
    with pytest.raises(ValueError, match="'triton', but that package is missing; pip install triton, or choose auto"):
        TaskAlignedAssigner(implementation="triton")


def test_what_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    params, cuda = AssignerParams(10, 0.5, 6.0), torch.device("cuda")
    assert launch.is_supported(torch.float32, params._replace(alpha=0.3, topk2=1), cuda)
    assert not launch.is_supported(torch.float64, params, cuda)
    assert not launch.is_supported(torch.float32, params._replace(topk=257), cuda)
    assert not launch.is_supported(torch.float32, params._replace(topk2=257), cuda)
    assert not launch.is_supported(torch.float32, params, torch.device("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert launch.is_supported(torch.float32, params, torch.device("cpu"))
    monkeypatch.setattr(launch, "available", lambda: False)
    assert not launch.is_supported(torch.float32, params, cuda)


def test_which_predictions_are_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    params = AssignerParams(10, 0.5, 6.0)
    maps, _ = sample()
    joined = join_predictions(maps, STRIDES, CLASSES, 16)
    assert loss.loss_is_supported(joined, params)
    mixed = join_predictions([maps[0].half(), *maps[1:]], STRIDES, CLASSES, 16)
    assert not loss.loss_is_supported(mixed, params)
    assert not loss.loss_is_supported(join_predictions([level[:0] for level in maps], STRIDES, CLASSES, 16), params)
    assert not loss.loss_is_supported(join_predictions([x.double() for x in maps], STRIDES, CLASSES, 16), params)


@needs_triton
@pytest.mark.parametrize("options", [{}, {"topk2": 1}])
def test_the_dense_implementation_computes_on_a_cpu(monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = sample_assigner_inputs(CASE, STRIDES, seed=0)
    want, got = (TaskAlignedAssigner(10, 4, implementation=name, **options)(*inputs) for name in ("dense", "triton"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


@needs_triton
def test_the_plain_loss_computes_in_float64() -> None:
    maps, truth = sample()
    results = []
    for name in ("triton", "auto"):
        leaves = [level.double().requires_grad_() for level in maps]
        joined = join_predictions(leaves, STRIDES, CLASSES, 16)
        result = criterion(name).from_padded(joined, truth._replace(gt_bboxes=truth.gt_bboxes.double()))
        results.append((result.loss, *torch.autograd.grad(result.loss, leaves)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))

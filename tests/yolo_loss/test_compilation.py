"""torch.compile: the marked kernels, and a compiled region around the criterion."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from yolo_loss import DetectionLoss, GroundTruth, TaskAlignedAssigner
from yolo_loss.execution.compilation import compiling_kernels, kernel, kernels_compiled

STRIDES = (8.0, 16.0, 32.0)
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
    # The compiler's own: it imports parts of torch that torch has deprecated.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.mark.parametrize("implementation", ["dense", "sparse"])
def test_compiled_assigner_decides_alike(implementation: str) -> None:
    numbers: dict[str, Any] = {
        "num_classes": 4,
        "topk": 10,
        "alpha": 0.5,
        "beta": 6.0,
        "implementation": implementation,
    }
    eager, compiled = TaskAlignedAssigner(**numbers), TaskAlignedAssigner(**numbers, compile_kernels=True)
    for case in (Case(3, 20, pyramid(160, 224, STRIDES), 4), Case(2, 7, pyramid(96, 96, STRIDES), 4)):
        inputs = sample_assigner_inputs(case, STRIDES, seed=0)
        want, got = eager(*inputs), compiled(*inputs)
        assert want.fg_mask.any()
        assert torch.equal(got.target_gt_idx, want.target_gt_idx)
        assert torch.equal(got.fg_mask, want.fg_mask)
        torch.testing.assert_close(got.target_scores, want.target_scores, rtol=1e-5, atol=1e-7)


def loss_and_gradients(
    criterion: Callable[..., Any], case: Case, seed: int, **more: Any
) -> tuple[Tensor, list[Tensor]]:
    feats, *rest = sample_loss_inputs(case, STRIDES, 16, seed=seed)
    leaves = [feat.requires_grad_() for feat in feats]
    height, width = (int(side * STRIDES[0]) for side in case.grids[0])
    loss, _ = criterion(leaves, ragged_batch(GroundTruth(*rest), (height, width)) | more)
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
def test_compiled_loss_is_the_same(class_loss: str) -> None:
    eager = DetectionLoss(4, STRIDES, class_loss=class_loss)
    compiled = DetectionLoss(4, STRIDES, class_loss=class_loss, compile_kernels=True)
    around = torch.compile(eager)
    for seed, case in enumerate((Case(3, 20, pyramid(160, 224, STRIDES), 4), Case(2, 7, pyramid(96, 96, STRIDES), 4))):
        want, want_gradients = loss_and_gradients(eager, case, seed)
        for criterion in (compiled, around):
            got, gradients = loss_and_gradients(criterion, case, seed)
            torch.testing.assert_close(got, want, rtol=2e-6, atol=0)
            for one, other in zip(gradients, want_gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_compiled_loss_with_class_weights_and_regions() -> None:
    weights = torch.tensor([[1.0, 0.0, 2.0, 0.5], [3.0, 1.0, 1.0, 0.0]])
    more = {
        "class_weights": weights,
        "ignore_idx": [0, 1],
        "ignore_bboxes": [[0.5, 0.5, 0.7, 0.4], [0.2, 0.2, 0.4, 0.4]],
    }
    case = Case(2, 7, pyramid(96, 96, STRIDES), 4)
    want, want_gradients = loss_and_gradients(DetectionLoss(4, STRIDES), case, 0, **more)
    got, gradients = loss_and_gradients(DetectionLoss(4, STRIDES, compile_kernels=True), case, 0, **more)
    torch.testing.assert_close(got, want, rtol=2e-6, atol=0)
    for one, other in zip(gradients, want_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_kernels_are_compiled_inside_only() -> None:
    @kernel
    def double(x: Tensor) -> Tensor:
        return x * 2 if torch.compiler.is_compiling() else x + x + 1

    x = torch.ones(3)
    assert double(x).tolist() == [3, 3, 3]
    with kernels_compiled(True):
        assert compiling_kernels()
        assert double(x).tolist() == [2, 2, 2]
        with kernels_compiled(False):
            assert not compiling_kernels()
            assert double(x).tolist() == [3, 3, 3]
    assert not compiling_kernels()

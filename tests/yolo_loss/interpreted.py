"""Triton's kernels on a CPU, by Triton's interpreter, beside the dense implementation.

Not collected by itself: ``test_triton_assign.py`` starts it with ``TRITON_INTERPRET=1``, which must be set before
Triton is imported.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs, sample_loss_inputs
from yolo_loss import DetectionLoss, GroundTruth, TaskAlignedAssigner
from yolo_loss.assignment import triton as triton_assign
from yolo_loss.assignment.params import AssignerParams
from yolo_loss.execution.channels import ClassScores
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(2, 9, pyramid(96, 128, STRIDES), 4)


def test_the_kernels_are_what_runs() -> None:
    scores = ClassScores((), torch.float32)
    assert triton_assign.is_supported(scores, AssignerParams(10, 0.5, 6.0), torch.device("cpu"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [{}, {"topk": 3, "min_box_side": 16.0}, {"alpha": 0.0, "beta": 0.0}, {"alpha": 1.0, "beta": 3.0, "topk": 1}],
)
def test_decides_as_the_dense_implementation(options: dict[str, Any], seed: int) -> None:
    # alpha = beta = 0 makes every candidate's metric 1: nothing but ties.
    inputs = sample_assigner_inputs(CASE._replace(weak=seed == 2), STRIDES, seed)
    inputs[1][0, ::7] = torch.nan
    inputs[5][1, 2:5] = False
    for field in inputs[3:]:
        field[:, 1] = field[:, 0]  # whose anchors are contested, with equal overlaps
    numbers = {"topk": 10, "alpha": 0.5, "beta": 6.0, "num_classes": 4, **options}
    want, got = (TaskAlignedAssigner(**numbers, implementation=name)(*inputs) for name in ("dense", "triton"))
    assert want.fg_mask.any()
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("slots", [9, 0])
@pytest.mark.parametrize("levels", [3, 1])
def test_the_loss(dtype: torch.dtype, slots: int, levels: int) -> None:
    strides = STRIDES[:levels]
    feats, *truth = sample_loss_inputs(Case(2, slots, pyramid(96, 128, strides), 4), strides, 16, seed=5)
    results = []
    for name in ("dense", "triton"):
        leaves = [feat.to(dtype).requires_grad_() for feat in feats]
        joined = join_predictions(leaves, strides, 4, 16)
        result = DetectionLoss(4, strides, implementation=name).from_padded(joined, GroundTruth(*truth))
        assert bool(result.assignment.fg_mask.any()) == bool(slots)
        results.append((*result.assignment, result.loss, *torch.autograd.grad(result.loss, leaves)))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [16, 128])
def test_which_of_equal_metrics_are_taken(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few different metrics, so that one larger makes room among many equal ones."""
    scores, *others = sample_assigner_inputs(CASE, STRIDES, seed=1)
    inputs = ((scores * 4).ceil() / 4, *others)
    numbers = {"topk": 5, "alpha": 1.0, "beta": 0.0, "num_classes": 4}
    monkeypatch.setattr(triton_assign, "BLOCK", block)
    want, got = (TaskAlignedAssigner(**numbers, implementation=name)(*inputs) for name in ("dense", "triton"))  # type: ignore[arg-type]
    assert torch.equal(got.fg_mask, want.fg_mask)
    assert torch.equal(got.target_gt_idx, want.target_gt_idx)


@pytest.mark.parametrize("block", [16, 128])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    inputs = sample_assigner_inputs(CASE, STRIDES, seed=0)
    want = TaskAlignedAssigner(10, 4, implementation="dense")(*inputs)
    monkeypatch.setattr(triton_assign, "BLOCK", block)
    got = TaskAlignedAssigner(10, 4, implementation="triton")(*inputs)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)

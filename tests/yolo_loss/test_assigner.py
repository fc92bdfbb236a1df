"""The assigner beside the slow oracle, in both precisions and as ONNX, and its properties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from tests import oracle
from tests.exports import OTHER_ASSIGNER, exported
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import TaskAlignedAssigner
from yolo_loss.assigner import IMPLEMENTATIONS

STRIDES = (8.0, 16.0, 32.0)
NUMBERS: dict[str, Any] = {"topk": 10, "alpha": 0.5, "beta": 6.0}
NAMES = ("target_labels", "target_bboxes", "target_scores", "fg_mask", "target_gt_idx")
Run = Callable[[tuple[Tensor, ...]], dict[str, np.ndarray[Any, Any]]]


def torch_run(dtype: torch.dtype, **options: Any) -> Run:
    """The module in one precision."""

    def run(inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray[Any, Any]]:
        assigner = TaskAlignedAssigner(num_classes=inputs[0].shape[2], **{**NUMBERS, **options})
        widened = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs]
        return {name: value.numpy() for name, value in assigner(*widened)._asdict().items()}

    return run


def onnx_run(path: Path) -> Run:
    """The exported graph."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray[Any, Any]]:
        names = [spec.name for spec in session.get_inputs()]
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        feed["anc_points"] = feed["anc_points"][None]
        return dict(zip(NAMES, session.run(list(NAMES), feed), strict=True))

    return run


@pytest.fixture(
    params=[(how, form) for how in ("float32", "float64", "onnx") for form in IMPLEMENTATIONS], ids=" ".join
)
def runner(request: pytest.FixtureRequest, assigners: dict[str, Run]) -> tuple[Run, type]:
    """Each way to compute the assignment, with the number type for the oracle."""
    how, implementation = request.param
    if how == "onnx":
        return assigners[implementation], np.float32
    return torch_run(getattr(torch, how), implementation=implementation), getattr(np, how)


@pytest.fixture(params=list(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> str:
    """Each implementation."""
    return str(request.param)


@pytest.fixture(scope="module")
def assigners() -> dict[str, Run]:
    """The exported assigner of each implementation."""
    return {form: onnx_run(exported("assigner", form) / "assigner.onnx") for form in IMPLEMENTATIONS}


def expected(inputs: tuple[Tensor, ...], real: type, **options: Any) -> oracle.Targets:
    return oracle.assign(*(tensor.numpy() for tensor in inputs), real=real, **{**NUMBERS, **options})


def assert_same(got: dict[str, np.ndarray[Any, Any]], want: oracle.Targets) -> None:
    """Decisions equal, scores to 1e-6."""
    for name in ("fg_mask", "target_gt_idx", "target_labels"):
        np.testing.assert_array_equal(got[name], getattr(want, name), err_msg=name)
    np.testing.assert_allclose(got["target_scores"], want.target_scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got["target_bboxes"], want.target_bboxes, rtol=1e-6, atol=0)


CASES = {
    "usual": Case(2, 6, pyramid(96, 128, STRIDES), 3),
    "crowded": Case(2, 25, pyramid(96, 96, STRIDES), 3),
    "more boxes than anchors": Case(1, 30, pyramid(32, 32, STRIDES), 3),
    "fewer anchors than candidates": Case(2, 2, ((1, 2), (1, 1), (1, 1)), 3),
    "no slots": Case(2, 0, pyramid(64, 32, STRIDES), 3),
    "one class": Case(2, 5, pyramid(64, 96, STRIDES), 1),
    "weak overlaps": Case(2, 6, pyramid(96, 96, STRIDES), 2, weak=True),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_oracle(runner: tuple[Run, type], name: str, seed: int) -> None:
    run, real = runner
    inputs = sample_assigner_inputs(CASES[name], STRIDES, seed)
    want = expected(inputs, real)
    if CASES[name].slots > 5:
        assert want.fg_mask.any(), "the sample must exercise something"
    got = run(inputs)
    if CASES[name].slots == 0 and CASES[name].num_classes == 3:
        assert (got["target_labels"] == 3).all()
    assert_same(got, want)


@pytest.mark.parametrize(
    "options",
    [
        {"topk": 13, "alpha": 1.0},
        {"topk": 1},
        {"topk": 100},
        {"min_box_side": 16.0},
        {"topk2": 1},
        {"topk2": 3, "min_box_side": 40.0},
        {"alpha": 0.0, "beta": 1.0},
        {"eps": 1e-3},
    ],
    ids=str,
)
def test_hyperparameters(options: dict[str, Any], implementation: str) -> None:
    inputs = sample_assigner_inputs(CASES["crowded"], STRIDES, 5)
    assert_same(
        torch_run(torch.float32, implementation=implementation, **options)(inputs),
        expected(inputs, np.float32, **options),
    )


def test_options_are_exported(implementation: str) -> None:
    path = exported("assigner", implementation, **OTHER_ASSIGNER) / "assigner.onnx"
    inputs = sample_assigner_inputs(CASES["crowded"], STRIDES, 6)
    plain = expected(inputs, np.float32)
    want = expected(inputs, np.float32, **OTHER_ASSIGNER)
    assert (plain.fg_mask != want.fg_mask).any()
    assert_same(onnx_run(path)(inputs), want)


def test_permuting_ground_truths_permutes_indices_only(runner: tuple[Run, type]) -> None:
    run, _ = runner
    inputs = sample_assigner_inputs(CASES["crowded"], STRIDES, 7)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    shuffled = (*inputs[:3], *(tensor[:, order].contiguous() for tensor in inputs[3:]))
    before, after = run(inputs), run(shuffled)
    foreground = before["fg_mask"]
    assert foreground.any()
    np.testing.assert_array_equal(after["fg_mask"], foreground)
    np.testing.assert_array_equal(
        order.numpy()[after["target_gt_idx"][foreground]], before["target_gt_idx"][foreground]
    )
    np.testing.assert_array_equal(after["target_scores"], before["target_scores"])


def test_images_do_not_influence_each_other(runner: tuple[Run, type]) -> None:
    run, _ = runner
    inputs = sample_assigner_inputs(CASES["usual"], STRIDES, 8)
    together = run(inputs)
    for image in range(2):
        alone = run(tuple(t if i == 2 else t[image : image + 1] for i, t in enumerate(inputs)))
        for name in NAMES:
            np.testing.assert_array_equal(alone[name][0], together[name][image], err_msg=name)


def test_padding_changes_nothing(runner: tuple[Run, type]) -> None:
    run, _ = runner
    inputs = sample_assigner_inputs(CASES["usual"], STRIDES, 9)
    padded = (*inputs[:3], *(torch.cat((t, torch.zeros_like(t[:, :1]).repeat(1, 4, 1)), dim=1) for t in inputs[3:]))
    before, after = run(inputs), run(padded)
    for name in NAMES:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, implementation: str) -> None:
    inputs = sample_assigner_inputs(CASES["usual"], STRIDES, 10)
    rounded = tuple(t.to(dtype) if t.is_floating_point() else t for t in inputs)
    got = TaskAlignedAssigner(num_classes=3, **NUMBERS, implementation=implementation)(*rounded)
    assert got.target_scores.dtype == torch.float32
    want = expected(tuple(t.float() if t.is_floating_point() else t for t in rounded), np.float32)
    assert_same({name: value.numpy() for name, value in got._asdict().items()}, want)


def test_arguments_are_left_alone(implementation: str) -> None:
    inputs = sample_assigner_inputs(CASES["usual"], STRIDES, 11)
    copies = [tensor.clone() for tensor in inputs]
    TaskAlignedAssigner(num_classes=3, min_box_side=16.0, topk2=1, implementation=implementation)(*inputs)
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_not_a_number_is_background(implementation: str) -> None:
    scores, boxes, *rest = sample_assigner_inputs(CASES["usual"], STRIDES, 12)
    spoiled_scores, spoiled_boxes = scores.clone(), boxes.clone()
    spoiled_scores[:, ::3], spoiled_boxes[:, 1::3] = float("nan"), float("nan")
    result = TaskAlignedAssigner(num_classes=3, **NUMBERS, implementation=implementation)(
        spoiled_scores, spoiled_boxes, *rest
    )
    assert result.fg_mask.any()
    assert not result.fg_mask[:, ::3].any()
    assert not result.fg_mask[:, 1::3].any()
    assert result.target_scores.isfinite().all()


def test_strides_are_taken_as_release_8_4_passes_them() -> None:
    assert TaskAlignedAssigner(stride=[8, 16, 32]).params.min_box_side == 16.0
    assert TaskAlignedAssigner(stride=[8, 16, 32], min_box_side=4.0).params.min_box_side == 4.0
    assert TaskAlignedAssigner(stride=[8]).params.min_box_side == 8.0

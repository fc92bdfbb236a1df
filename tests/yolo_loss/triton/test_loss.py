"""The whole loss step by the kernels in Triton's interpreter, beside the dense implementation in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.yolo_loss.triton.cases import (
    CLASSES,
    SIZE,
    STRIDES,
    Sample,
    assert_alike,
    compare,
    criterion,
    interpreted,
    sample,
)
from yolo_assigner.export.samples import ragged_batch
from yolo_loss.predictions import join_map_lists, join_predictions
from yolo_loss.structures import ClassInputs, LossResult
from yolo_loss.triton import loss as kernel_loss

pytestmark = interpreted
CLS = 1


@pytest.mark.parametrize("reg_max", [16, 1, 10])
@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
def test_agrees_with_float64(reg_max: int, class_loss: str) -> None:
    got, want = compare(sample(reg_max=reg_max, seed=3), reg_max=reg_max, class_loss=class_loss)
    assert want.result.assignment.fg_mask.any(1).all()
    assert_alike(got, want)


@pytest.mark.parametrize("strides", [(4.0, 8.0, 16.0, 32.0), (8.0, 16.0, 32.0, 64.0), (16.0,)])
def test_other_pyramids(strides: tuple[float, ...]) -> None:
    inputs = sample(strides=strides, size=(64, 128), slots=3)
    assert_alike(*compare(inputs, strides=strides, topk=4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_half_precision(dtype: torch.dtype, factor: float) -> None:
    # Rounded once, and bfloat16 once more by a factor that is no power of two.
    tolerance = torch.finfo(dtype).eps * (1.5 if factor == 1 else 2.5)
    assert_alike(*compare(sample(), dtype=dtype, factor=factor), tolerance)


def channels_last(level: Tensor) -> Tensor:
    return level.contiguous(memory_format=torch.channels_last)


def part_of_a_larger_map(level: Tensor) -> Tensor:
    wide = torch.zeros(level.shape[0], level.shape[1] + 4, level.shape[2], level.shape[3] + 1, dtype=level.dtype)
    wide[:, 2:-2, :, :-1] = level
    return wide[:, 2:-2, :, :-1]


@pytest.mark.parametrize("layout", [channels_last, part_of_a_larger_map])
def test_memory_layouts(layout: Any) -> None:
    assert_alike(*compare(sample(), layout=layout, topk2=1))


def test_gradients_have_the_maps_layout() -> None:
    maps, truth = sample()
    leaves = [channels_last(level).requires_grad_() for level in maps]
    loss = criterion("triton").from_padded(join_predictions(leaves, STRIDES, CLASSES, 16), truth).loss
    gradients = torch.autograd.grad(loss, [level for level in leaves if level.numel()])
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in gradients)


@pytest.mark.parametrize("kind", ["two lists", "joined"])
def test_boxes_and_classes_apart(kind: str) -> None:
    def join(leaves: list[Tensor]) -> Any:
        boxes, classes = [level[:, :64] for level in leaves], [level[:, 64:] for level in leaves]
        if kind == "two lists":
            return join_map_lists(classes, boxes, STRIDES, CLASSES, 16)
        flat = {"boxes": boxes, "scores": classes}
        joined = {name: torch.cat([level.flatten(2) for level in levels], 2) for name, levels in flat.items()}
        return join_predictions({**joined, "feats": leaves}, STRIDES, CLASSES, 16)

    assert_alike(*compare(sample(), join=join))


def test_only_one_of_two_maps_requires_a_gradient() -> None:
    maps, truth = sample()
    boxes = [level[:, :64].clone().requires_grad_() for level in maps]
    classes = [level[:, 64:].clone() for level in maps]
    results = [
        torch.autograd.grad(
            criterion(name).from_padded(join_map_lists(classes, boxes, STRIDES, CLASSES, 16), truth).loss, boxes
        )
        for name in ("triton", "dense")
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constants", [None, (1.0, 0.0, 2.5)])
@pytest.mark.parametrize("of_images", [False, True])
@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
def test_class_weights(constants: Any, of_images: bool, class_loss: str) -> None:
    weights = torch.tensor([[0.5, 1.0, 0.0], [2.0, 0.0, 3.0]]) if of_images else None
    if constants is None and weights is None:
        constants = (0.0, 0.0, 0.0)
    inputs = sample()
    inputs.maps[0][:, 65] = math.nan if constants is not None else 0.0  # of weight 0: it may be anything
    inputs.truth.gt_labels[inputs.truth.gt_labels == 1] = 2
    got, want = compare(inputs, class_inputs=ClassInputs(weights), class_weights=constants, class_loss=class_loss)
    assert_alike(got, want)


@pytest.mark.parametrize("regions", [2, 0])
def test_ignore_regions(regions: int) -> None:
    inputs = sample()
    boxes = torch.tensor([[[0.0, 0, 60, 50], [20, 0, 96, 64]], [[8.0, 8, 40, 40], [0, 0, 96, 64]]])[:, :regions]
    mask = torch.tensor([[[True], [True]], [[True], [False]]])[:, :regions]
    got, want = compare(inputs, class_inputs=ClassInputs(None, boxes, mask))
    assert_alike(got, want)
    whole, _ = compare(inputs)
    assert bool(got.result.image_sums[0, CLS] < whole.result.image_sums[0, CLS]) == bool(regions)


@pytest.mark.parametrize("slots", [0, 4])
def test_no_foreground(slots: int) -> None:
    inputs = sample(slots=slots)
    inputs.truth.mask_gt.zero_()
    got, want = compare(inputs)
    assert not want.result.assignment.fg_mask.any()
    assert_alike(got, want)
    for gradient in got.gradients:
        assert torch.isfinite(gradient).all()
        assert not gradient[:, :64].any()


def test_an_image_without_boxes() -> None:
    inputs = sample()
    inputs.truth.mask_gt[0] = False
    assert_alike(*compare(inputs))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
def test_class_logits_that_are_not_finite(value: float, class_loss: str) -> None:
    """They spoil the class sum of their image, and their own gradient at most."""
    inputs = sample()
    inputs.truth.gt_labels.fill_(0)
    clean, _ = compare(inputs, class_loss=class_loss)
    inputs.maps[1][1, 66, 1, 2] = value
    got, want = compare(inputs, class_loss=class_loss)
    torch.testing.assert_close(
        got.result.image_sums.double(), want.result.image_sums, rtol=2e-5, atol=1e-6, equal_nan=True
    )
    kept = torch.ones(2, 4, dtype=torch.bool)
    kept[1, CLS] = False
    assert torch.equal(got.result.image_sums[kept], clean.result.image_sums[kept])
    place = torch.zeros_like(got.gradients[1], dtype=torch.bool)
    place[1, 66, 1, 2] = True
    assert torch.equal(got.gradients[1][~place], clean.gradients[1][~place])
    torch.testing.assert_close(got.gradients[1][place], want.gradients[1][place], rtol=1e-5, atol=1e-9, equal_nan=True)
    assert torch.equal(got.gradients[0], clean.gradients[0])


def test_a_background_distribution_that_is_not_finite() -> None:
    inputs = sample()
    clean, _ = compare(inputs)
    background = ~clean.result.assignment.fg_mask[0, :96].view(8, 12)
    y, x = background.nonzero()[0].tolist()
    inputs.maps[0][0, 3, y, x] = math.nan
    got, _ = compare(inputs)
    assert torch.equal(got.result.image_sums, clean.result.image_sums)
    assert all(torch.equal(one, other) for one, other in zip(got.gradients, clean.gradients, strict=True))


def test_an_infinite_logit_of_the_assigned_class() -> None:
    inputs = sample()
    inputs.truth.gt_labels.fill_(1)
    inputs.maps[0][0, 65] = math.inf
    got, want = compare(inputs)
    assert want.result.image_sums[0, CLS] == math.inf
    assert got.result.image_sums[0, CLS] == math.inf
    assert all(torch.isfinite(gradient).all() for gradient in got.gradients)


def test_a_perfect_box() -> None:
    """Minima and maxima of equal sides: each argument has half of the derivative, as in torch."""
    maps = [torch.zeros(1, 4 + CLASSES, size, size) for size in (4, 2, 1)]
    maps[0][0, :4, 1, 1] = 1.0
    _, truth = sample(slots=1)
    truth.gt_bboxes[:1], truth.mask_gt[:1] = torch.tensor([4.0, 4.0, 20.0, 20.0]), True
    inputs = Sample(maps, type(truth)(*(field[:1] for field in truth)))
    got, want = compare(inputs, reg_max=1, topk=1)
    assert want.result.assignment.fg_mask.sum() == 1
    assert_alike(got, want)


def test_a_ragged_batch_and_clipped_sides() -> None:
    maps, truth = sample(reg_max=2)
    batch = ragged_batch(truth, SIZE)
    results: list[LossResult] = []
    for name in ("triton", "dense"):
        with pytest.warns(UserWarning, match="reg_max 2"):
            results.append(criterion(name, 2, topk=30).evaluate(maps, batch))
    ours, theirs = (result.clipped for result in results)
    assert ours is not None
    assert theirs is not None
    assert int(ours.sides) == int(theirs.sides) > 0
    assert ours.sides.dtype == torch.int64
    torch.testing.assert_close(ours.longest, theirs.longest)
    torch.testing.assert_close(results[0].loss, results[1].loss, rtol=1e-5, atol=0)


def gradients_of(implementation: str, weigh: Any, maps: list[Tensor], truth: Any, **options: Any) -> list[Tensor]:
    leaves = [level.clone().requires_grad_() for level in maps]
    result = criterion(implementation).from_padded(join_predictions(leaves, STRIDES, CLASSES, 16), truth)
    return list(torch.autograd.grad(weigh(result), leaves, **options))


@pytest.mark.parametrize(
    "weigh",
    [
        lambda result: result.loss * torch.tensor(-2.5),
        lambda result: (result.image_sums * torch.arange(8.0).view(2, 4)).sum(),
        lambda result: result.loss * 0.5 + result.image_sums[1, 2],
    ],
    ids=["loss", "sums", "both"],
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_derivatives_of_what_is_made_of_the_results(weigh: Any, create_graph: bool) -> None:
    maps, truth = sample()
    got, want = (gradients_of(name, weigh, maps, truth, create_graph=create_graph) for name in ("triton", "dense"))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=2e-5 * float(other.detach().abs().max()))


def test_second_derivatives() -> None:
    maps, truth = sample(slots=2)
    results = []
    for name in ("triton", "dense"):
        leaves = [level.clone().requires_grad_() for level in maps]
        result = criterion(name).from_padded(join_predictions(leaves, STRIDES, CLASSES, 16), truth)
        first = torch.autograd.grad(result.loss, leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves))  # type: ignore[arg-type]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-5 * float(other.abs().max()))


def test_backward_twice() -> None:
    """The second time the gradients are computed anew: the first ones belong to whoever took them."""
    maps, truth = sample()
    leaves = [level.clone().requires_grad_() for level in maps]
    result = criterion("triton").from_padded(join_predictions(leaves, STRIDES, CLASSES, 16), truth)
    first = torch.autograd.grad(result.loss, leaves, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()
    for one, other in zip(torch.autograd.grad(result.loss, leaves), kept, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_batched_gradients() -> None:
    maps, truth = sample(slots=2)
    leaves = [level.clone().requires_grad_() for level in maps]
    result = criterion("triton").from_padded(join_predictions(leaves, STRIDES, CLASSES, 16), truth)
    single = torch.autograd.grad(result.loss, leaves, retain_graph=True)
    both = torch.autograd.grad(result.loss, leaves, torch.tensor([1.0, -2.0]), is_grads_batched=True)
    for one, other in zip(both, single, strict=True):
        torch.testing.assert_close(one, torch.stack((other, -2 * other)), rtol=1e-4, atol=1e-5)


def test_maps_that_are_overwritten_before_backward() -> None:
    maps, truth = sample(slots=1)
    leaves = [level.clone().requires_grad_() for level in maps]
    inner = [level * 1 for level in leaves]
    loss = criterion("triton").from_padded(join_predictions(inner, STRIDES, CLASSES, 16), truth).loss
    inner[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_torch_func_is_left_to_the_plain_modules() -> None:
    maps, truth = sample(slots=2)

    def loss(implementation: str, *levels: Tensor) -> Tensor:
        joined = join_predictions(list(levels), STRIDES, CLASSES, 16)
        return criterion(implementation).from_padded(joined, truth).loss

    places = tuple(range(1, 4))
    got, want = (torch.func.grad(loss, places)(name, *maps) for name in ("triton", "dense"))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_loss_scale_reaches_small_gradients_of_half_precision() -> None:
    """Without it they are below the smallest float16, 6e-8; in float32 they are not."""
    maps, truth = sample()
    maps = [level.half() for level in maps]
    maps[0][:, 64:] = -16.0  # probabilities of 1e-7
    got, want = (gradients_of(name, lambda result: result.loss * 2.0**14, maps, truth) for name in ("triton", "dense"))
    assert 0 < want[0][:, 64:].abs().min() < 1
    torch.testing.assert_close(got[0], want[0], rtol=2e-3, atol=1e-6)


def test_nothing_is_written_without_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_loss, "Gradients", None)
    maps, truth = sample(slots=2)
    leaves = [level.requires_grad_() for level in maps]
    joined = join_predictions(leaves, STRIDES, CLASSES, 16)
    with torch.no_grad():
        got = criterion("triton").from_padded(joined, truth).loss
    assert not got.requires_grad
    torch.testing.assert_close(got, criterion("dense").from_padded(joined, truth).loss.detach(), rtol=1e-5, atol=0)
    with pytest.raises(TypeError):  # with autograd they are
        criterion("triton").from_padded(joined, truth)

"""Exponentials, sums and gradients in one pass over the maps, beside element by element in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from yolo_assigner.export.samples import Case, pyramid, sample_loss_inputs
from yolo_loss import DetectionLoss, Gains, GroundTruth
from yolo_loss.anchors import decode, decode_levels
from yolo_loss.assignment import anchor_grid, segment_ops
from yolo_loss.assignment.anchor_grid import IndexRanges, expand_ranges
from yolo_loss.assignment.segment_ops import segment_topk, true_indices
from yolo_loss.execution import buffers, chunks
from yolo_loss.execution.channels import Channels
from yolo_loss.execution.products import softplus, softplus_sums, softplus_sums_with_gradient
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(3, 6, pyramid(64, 96, STRIDES), 3)


def levels_of(classes: int, *, channels_last: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(3, classes, anchors, generator=generator) * 4 for anchors in (35, 12, 1)]
    return [level.transpose(1, 2).contiguous().transpose(1, 2) for level in levels] if channels_last else levels


def wide_sums(levels: list[Tensor]) -> Tensor:
    return torch.stack([softplus(level.double()).sum(dim=(1, 2)) for level in levels]).sum(dim=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("classes", [1, 3, 80])
def test_sums_and_gradients(classes: int, channels_last: bool) -> None:
    levels = levels_of(classes, channels_last=channels_last)
    scale = torch.tensor([0.5, 2.0, 0.0])[:, None, None]
    out = [torch.full_like(level, math.nan) for level in levels]
    sums = softplus_sums_with_gradient(levels, scale, out)
    torch.testing.assert_close(sums.double(), wide_sums(levels), rtol=1e-6, atol=0)
    assert torch.equal(sums, softplus_sums(levels, torch.float32))
    for level, gradient in zip(levels, out, strict=True):
        torch.testing.assert_close(gradient.double(), level.double().sigmoid() * scale, rtol=3e-6, atol=0)


@pytest.mark.parametrize("value", [60.0, 89.0, 1e4, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("size", [1, 80])
def test_numbers_whose_product_is_too_large(value: float, size: int) -> None:
    """They are computed element by element; no other image and no other element's gradient changes."""
    levels, scale = levels_of(80), torch.ones(3, 1, 1)
    usual = [torch.empty_like(level) for level in levels]
    want = softplus_sums_with_gradient(levels, scale, usual)
    levels[1][1, :size, 3] = value
    out = [torch.empty_like(level) for level in levels]
    sums = softplus_sums_with_gradient(levels, scale, out)
    assert torch.equal(sums[[0, 2]], want[[0, 2]])
    torch.testing.assert_close(sums.double(), wide_sums(levels), rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(softplus_sums(levels, torch.float32)[[0, 2]], want[[0, 2]])
    for level, gradient in zip(levels, out, strict=True):
        torch.testing.assert_close(gradient.double(), level.double().sigmoid(), rtol=3e-6, atol=0, equal_nan=True)


def test_chunks_of_images_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [level.double() for level in levels_of(80)]
    want = softplus_sums(levels, torch.float64)
    monkeypatch.setattr(chunks, "ELEMENTS_PER_CHUNK", 1)
    torch.testing.assert_close(softplus_sums(levels, torch.float64), want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("level", [-200.0, -60.0, 0.0, 15.0, 60.0, 200.0])
def test_decoding_at_any_level_of_the_logits(level: float) -> None:
    """Without a shift exponentials of 60 are rounded and those of 200 infinite: there it is a softmax."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 64, 12, generator=generator) * 2
    logits[1, 16:32, 5:] += level
    points = torch.rand(12, 2, generator=generator) * 20
    got = decode_levels([Channels(logits[:, :, :8], 0, 64), Channels(logits[:, :, 8:], 0, 64)], points, 16)
    torch.testing.assert_close(got.double(), decode(logits.double(), points.double(), 16), rtol=1e-6, atol=2e-6)


def test_a_distribution_that_is_no_number_stays_alone() -> None:
    logits = torch.zeros(1, 8, 3)
    logits[0, 2, 1], logits[0, 4, 2] = math.nan, math.inf
    boxes = decode_levels([Channels(logits, 0, 8)], torch.zeros(3, 2), 2)
    assert boxes.isnan()[0].tolist() == [[False] * 4, [False, True, False, False], [False, False, True, False]]
    assert boxes[0, 0].tolist() == [-0.5, -0.5, 0.5, 0.5]


@pytest.mark.parametrize("gains", [Gains(), Gains(cls=0.0)])
@pytest.mark.parametrize("factor", [1.0, 1024.0, 0.3])
def test_gradients_of_another_loss_and_again(gains: Gains, factor: float) -> None:
    """Forward prepares the gradient of the loss itself; backward of another scale, and a second one, agree with it."""
    feats, *truth = sample_loss_inputs(CASE, STRIDES, 16, seed=4)
    ground_truth = GroundTruth(truth[0], truth[1].double(), truth[2])
    leaves = [feat.double().requires_grad_() for feat in feats]
    criterion = DetectionLoss(3, STRIDES, implementation="sparse", gains=gains)
    joined = join_predictions(leaves, STRIDES, 3, 16)
    _, want = criterion.gradients_from_padded(joined, ground_truth)
    loss = criterion.from_padded(joined, ground_truth).loss
    for _ in range(2):
        got = torch.autograd.grad(loss * factor, leaves, retain_graph=True)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other.view(one.shape) * factor, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("shortest", [0, 2**40])
def test_lists_by_numpy_and_by_torch(monkeypatch: pytest.MonkeyPatch, shortest: int) -> None:
    for module in (buffers, segment_ops, anchor_grid):
        monkeypatch.setattr(module, "MIN_ARRAY", shortest)
    assert true_indices(torch.tensor([True, False, False, True])).tolist() == [0, 3]
    assert true_indices(torch.zeros(2, dtype=torch.bool)).tolist() == []
    ranges = IndexRanges(torch.tensor([1, 1, 4]), torch.tensor([10, 30, 5]), torch.tensor([2, 0, 3]))
    pairs = expand_ranges(ranges)
    assert pairs.slot.tolist() == [1, 1, 4, 4, 4]
    assert pairs.anchor.tolist() == [10, 11, 5, 6, 7]
    values, segment = torch.tensor([1.0, 3.0, 2.0, 5.0]), torch.tensor([0, 0, 0, 2])
    assert segment_topk(values, segment, torch.tensor([3, 0, 1]), 2).tolist() == [1, 2, 3]

"""What a GPU needs, on a CPU: chunks of images in the dense implementation, lists whose length is known beforehand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from yolo_loss import DetectionLoss, Gains, GroundTruth, TaskAlignedAssigner, pad_ground_truth
from yolo_loss.assigner import IMPLEMENTATIONS
from yolo_loss.assignment.dense import assign_in_chunks
from yolo_loss.execution.buffers import constants, kept_constants
from yolo_loss.predictions import join_predictions
from yolo_loss.reductions.foreground import find_foreground, indices_true_first
from yolo_loss.reductions.gradients import sparse_gradients
from yolo_loss.reductions.sparse import sparse_sums
from yolo_loss.structures import Assignment, Predictions

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(3, 9, pyramid(96, 128, STRIDES), 4)


@pytest.mark.parametrize("limit", [1, 7000, 2**30])
def test_chunks_of_the_dense_implementation_change_nothing(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    inputs = sample_assigner_inputs(CASE._replace(batch=5), STRIDES, seed=0)
    usual = TaskAlignedAssigner(10, 4, implementation="dense")(*inputs)
    monkeypatch.setitem(IMPLEMENTATIONS, "dense", partial(assign_in_chunks, limit=limit))
    for one, other in zip(usual, TaskAlignedAssigner(10, 4, implementation="dense")(*inputs), strict=True):
        assert torch.equal(one, other)


@given(st.lists(st.booleans(), max_size=40))
def test_true_comes_first(flags: list[bool]) -> None:
    want = [place for wanted in (True, False) for place, flag in enumerate(flags) if flag is wanted]
    assert indices_true_first(torch.tensor(flags, dtype=torch.bool)).tolist() == want


def assigned(class_loss: str, seed: int = 3) -> tuple[Predictions, GroundTruth, Assignment]:
    feats, *truth = sample_loss_inputs(CASE, STRIDES, 16, seed)
    feats[0][:, :64, 0, 0] = torch.nan  # the box of an anchor that is background, among the first of those
    predictions = join_predictions([feat.double().requires_grad_() for feat in feats], STRIDES, 4, 16)
    ground_truth = GroundTruth(*truth)
    assignment = DetectionLoss(4, STRIDES, class_loss=class_loss).from_padded(predictions, ground_truth).assignment
    assert 0 < assignment.fg_mask.sum() < assignment.fg_mask.numel()
    assert not assignment.fg_mask[:, 0].any()
    return predictions, ground_truth, assignment


@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
@pytest.mark.parametrize("spare", [0, 50, 10**9])
def test_lists_filled_up_give_the_same(class_loss: str, spare: int) -> None:
    predictions, ground_truth, assignment = assigned(class_loss)
    max_foreground = int(assignment.fg_mask.sum()) + spare
    inputs = predictions, ground_truth, assignment, class_loss
    assert find_foreground(*inputs[:3], max_foreground).image.shape[0] > assignment.fg_mask.sum()
    leaves = [level.scores_source for level in predictions.levels]
    results: list[list[Tensor]] = []
    for limit in (None, max_foreground):
        sums = sparse_sums(*inputs, limit)
        with torch.no_grad():
            alone = sparse_sums(*inputs, limit)
        results.append([sums, alone, *torch.autograd.grad(sums, leaves, weights_of(sums))])
    for place, (got, want) in enumerate(zip(results[1], results[0], strict=True)):
        if place < 2:
            assert torch.equal(got, want)
        else:
            # A filled-up place is computed by itself, by other operations than its neighbours.
            torch.testing.assert_close(got, want, rtol=1e-13, atol=0)


def weights_of(sums: Tensor) -> Tensor:
    return torch.arange(1, 1 + sums.numel(), dtype=sums.dtype).view(sums.shape)


@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
def test_gradients_without_autograd_from_lists_filled_up(class_loss: str) -> None:
    predictions, ground_truth, assignment = assigned(class_loss)
    inputs = predictions, ground_truth, assignment, class_loss, Gains()
    with torch.no_grad():
        want, got = (sparse_gradients(*inputs, max_foreground) for max_foreground in (None, 600))
    assert torch.equal(got[0], want[0])
    for one, other in zip(got[1], want[1], strict=True):
        # A filled-up place is computed by itself, where a vector routine may round otherwise.
        torch.testing.assert_close(one, other, rtol=1e-13, atol=0)


@pytest.mark.parametrize("topk2", [None, 2])
def test_no_image_has_more_foreground_than_the_bound(topk2: int | None) -> None:
    # Many boxes with room for all the anchors that they choose: the bound is nearly reached.
    corner = 128.0 * torch.arange(4)
    grid = torch.stack(torch.meshgrid(corner, corner, indexing="ij"), dim=-1).view(1, 16, 2)
    boxes = torch.cat((grid, grid + 128.0), dim=-1)
    centre = torch.stack(torch.meshgrid(*[torch.arange(64) * 8.0 + 4.0] * 2, indexing="ij"), dim=-1).view(-1, 2)
    predicted = torch.cat((centre - 60.0, centre + 60.0), dim=-1)[None]
    assigner = TaskAlignedAssigner(10, 1, topk2=topk2)
    truth = torch.zeros(1, 16, 1, dtype=torch.int64), boxes, torch.ones(1, 16, 1)
    foreground = int(assigner(torch.ones(1, 4096, 1), predicted, centre, *truth).fg_mask.sum())
    assert foreground == assigner.params.max_assigned(16) == 16 * (topk2 or 10)


def test_constants() -> None:
    like = torch.empty(2, dtype=torch.float64)
    assert torch.equal(constants((0.1, 2.0), like), torch.tensor((0.1, 2.0), dtype=torch.float64))
    assert constants((0.1, 2.0), like.to("meta")).shape == (2,)
    kept = [kept_constants((0.1, 2.0), torch.float64, like.device, stream) for stream in (0, 0, 1)]
    assert torch.equal(kept[0], constants((0.1, 2.0), like))
    assert kept[0] is kept[1] is not kept[2]


def test_slots_that_are_given() -> None:
    batch = torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1]), torch.tensor([[0.5, 0.5, 0.2, 0.4]]).repeat(3, 1)
    usual = pad_ground_truth(*batch, batch_size=2, image_size=(96, 128))
    wider = pad_ground_truth(*batch, batch_size=2, image_size=(96, 128), slots=5)
    assert wider.gt_bboxes.shape == (2, 5, 4)
    assert not wider.mask_gt[:, 2:].any()
    for one, other in zip(wider, usual, strict=True):
        assert torch.equal(one[:, :2], other)
    with pytest.raises(ValueError, match="an image has 2 boxes, but max_boxes is 1"):
        pad_ground_truth(*batch, batch_size=2, image_size=(96, 128), slots=1)


def test_the_criterion_with_slots_that_are_given() -> None:
    feats, *truth = sample_loss_inputs(CASE, STRIDES, 16, seed=1)
    batch = ragged_batch(GroundTruth(*truth), (96, 128))
    want, got = (DetectionLoss(4, STRIDES, max_boxes=most).evaluate(feats, batch) for most in (None, 30))
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-6, atol=0)
    assert torch.equal(got.assignment.target_gt_idx, want.assignment.target_gt_idx)
    with pytest.raises(ValueError, match="max_boxes is 1; give a larger one"):
        DetectionLoss(4, STRIDES, max_boxes=1)(feats, batch)
    with pytest.raises(ValueError, match="max_boxes is -1, expected a whole number, at least 0"):
        DetectionLoss(4, STRIDES, max_boxes=-1)

"""The kernels of the assignment in Triton's interpreter, beside the dense implementation in float64 and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.yolo_loss.triton.cases import interpreted
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import TaskAlignedAssigner, make_anchors
from yolo_loss.execution.channels import Channels, ClassScores
from yolo_loss.structures import AssignmentResult, GroundTruth
from yolo_loss.triton import assignment

pytestmark = interpreted
STRIDES = (8.0, 16.0, 32.0)
CASE = Case(2, 5, pyramid(64, 96, STRIDES), 4)
NUMBERS: dict[str, Any] = {"topk": 10, "alpha": 0.5, "beta": 6.0, "num_classes": 4}


def assign(inputs: Sequence[Tensor], implementation: str = "triton", **options: Any) -> AssignmentResult:
    return TaskAlignedAssigner(**{**NUMBERS, **options}, implementation=implementation)(*inputs)  # type: ignore[no-any-return]


def double(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [field.double() if field.is_floating_point() else field for field in inputs]


def assert_alike(got: AssignmentResult, want: AssignmentResult) -> None:
    """The same decisions as float64 and the same scores as far as float32 tells them apart."""
    for name in ("target_labels", "fg_mask", "target_gt_idx"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    torch.testing.assert_close(got.target_bboxes.double(), want.target_bboxes.double(), rtol=0, atol=0)
    torch.testing.assert_close(got.target_scores.double(), want.target_scores.double(), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"topk": 3, "min_box_side": 16.0},
        {"topk2": 1, "topk": 7},
        {"topk2": 3},
        {"alpha": 0.3, "beta": 2.7, "min_box_side": 40.0},
        {"alpha": 1.0, "beta": 7.0, "topk": 1},
        {"alpha": 16.5, "beta": 0.0},
        {"alpha": 0.0, "beta": 17.0, "eps": 3.0},
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_decides_as_float64(options: dict[str, Any], seed: int) -> None:
    inputs = sample_assigner_inputs(CASE._replace(weak=seed == 1), STRIDES, seed)
    want = assign(double(inputs), "dense", **options)
    assert want.fg_mask.any()
    assert_alike(assign(inputs, **options), want)


@pytest.mark.parametrize("strides", [(4.0, 8.0, 16.0, 32.0), (8.0, 16.0, 32.0, 64.0), (16.0,)])
def test_other_pyramids(strides: tuple[float, ...]) -> None:
    inputs = sample_assigner_inputs(Case(1, 3, pyramid(64, 128, strides), 4), strides, seed=2)
    assert_alike(assign(inputs), assign(double(inputs), "dense"))


def test_points_of_each_image_are_left_to_the_dense_implementation() -> None:
    """The kernels have one set of points; also where only the compact form is asked for."""
    scores, boxes, points, *truth = sample_assigner_inputs(CASE, STRIDES, seed=4)
    inputs = (scores, boxes, points + 3.0 * torch.arange(CASE.batch)[:, None, None], *truth)
    want = assign(inputs, "dense")
    assert all(torch.equal(*pair) for pair in zip(assign(inputs), want, strict=True))
    classes = ClassScores((Channels(scores.transpose(1, 2), 0, CASE.num_classes),), scores.dtype)
    compact = TaskAlignedAssigner(**NUMBERS, implementation="triton").assign(classes, *inputs[1:3], GroundTruth(*truth))
    assert torch.equal(compact.fg_mask, want.fg_mask)
    assert want.fg_mask.any(dim=1).all()


@pytest.mark.parametrize("options", [{}, {"topk2": 2}])
def test_equal_boxes_contest_all_their_anchors(options: dict[str, Any]) -> None:
    """Equal overlaps: the smallest slot wins them all."""
    inputs = sample_assigner_inputs(CASE, STRIDES, seed=3)
    inputs[4][:, 1], inputs[5][:, 1] = torch.tensor([8.0, 4.0, 72.0, 60.0]), True
    for field in inputs[3:]:
        field[:, 2] = field[:, 4] = field[:, 1]
    got, want = assign(inputs, **options), assign(double(inputs), "dense", **options)
    assert (want.target_gt_idx == 1).any()
    assert not torch.isin(want.target_gt_idx, torch.tensor([2, 4])).any()
    assert_alike(got, want)


def test_a_contested_anchor_goes_to_the_largest_overlap_of_all_candidates() -> None:
    """By hand. Slots 0 and 1 choose anchor 0 (k = 1), but slot 2 overlaps its box more, and chose another.

    Anchor 0 predicts slot 2's box. Slot 2 is of class 1, whose score is 0.5 there and 1 at anchor 1, which predicts the
    same box: t = 1 at anchor 1. Slots 0 and 1 are of class 0, with score 1 at anchor 0 and 0 at anchor 1.
    """
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0]])
    boxes = torch.tensor([[[0.0, 0.0, 16.0, 8.0], [0.0, 0.0, 16.0, 8.0]]])
    scores = torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])
    truth = torch.tensor([[[0.0, 0.0, 14.0, 8.0], [0.0, 0.0, 15.0, 8.0], [0.0, 0.0, 16.0, 8.0]]])
    labels, mask = torch.tensor([[[0], [0], [1]]]), torch.ones(1, 3, 1)
    got = assign([scores, boxes, points, labels, truth, mask], topk=1, num_classes=2, alpha=1.0)
    assert got.target_gt_idx.tolist() == [[2, 2]]
    assert got.target_labels.tolist() == [[1, 1]]
    # t is 0.5 and 1, the largest t and u are 1: the scores are 0.5 and 1.
    torch.testing.assert_close(got.target_scores, torch.tensor([[[0.0, 0.5], [0.0, 1.0]]]))


@pytest.mark.parametrize("block", [16, 64])
def test_which_of_equal_metrics_are_taken(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few different metrics, so that one larger makes room among many equal ones; blocks change nothing."""
    scores, *others = sample_assigner_inputs(CASE, STRIDES, seed=1)
    inputs = [(scores * 4).ceil() / 4, *others]
    for name in ("BOX_BLOCK", "IMAGE_BLOCK", "ROW_BLOCK", "POINT_BLOCK"):
        monkeypatch.setattr(assignment, name, block)
    options: dict[str, Any] = {"topk": 5, "alpha": 1.0, "beta": 0.0}
    assert_alike(assign(inputs, **options), assign(double(inputs), "dense", **options))


@pytest.mark.parametrize("order", ["shuffled", "columns first", "two levels swapped", "uneven", "not contiguous"])
def test_points_in_any_order(order: str) -> None:
    """Only regular levels are found by their steps; of others every point is looked at."""
    scores, boxes, points, *truth = sample_assigner_inputs(CASE, STRIDES, seed=5)
    anchors = points.shape[0]
    index = torch.arange(anchors)
    if order == "shuffled":
        index = torch.randperm(anchors, generator=torch.Generator().manual_seed(0))
    elif order == "columns first":
        index = torch.arange(96).view(8, 12).t().flatten()
    elif order == "two levels swapped":
        index = torch.cat((index[96:120], index[:96], index[120:]))
    scores, boxes, points = scores[:, index], boxes[:, index], points[index]
    if order == "uneven":
        points[17, 0] += 0.9
    elif order == "not contiguous":
        points = points.t().contiguous().t()
        boxes, scores = boxes.transpose(1, 2).contiguous().transpose(1, 2), scores.transpose(1, 2).contiguous().mT
    inputs = [scores, boxes, points, *truth]
    assert_alike(assign(inputs), assign(double(inputs), "dense"))


def test_one_point() -> None:
    points, strides = make_anchors([torch.empty(1, 1, 1, 1)], (32.0,))
    box = torch.tensor([[[2.0, 3.0, 30.0, 28.0]]])
    inputs = [torch.full((1, 1, 4), 0.25), box, points * strides, torch.zeros(1, 1, 1), box, torch.ones(1, 1, 1)]
    got = assign(inputs)
    assert got.fg_mask.all()
    assert float(got.target_scores[0, 0, 0]) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [{}, {"topk2": 1}])
def test_numbers_that_are_not_finite(value: float, options: dict[str, Any]) -> None:
    inputs = sample_assigner_inputs(CASE, STRIDES, seed=6)
    inputs[1][0, ::7] = value  # predicted boxes
    inputs[0][1, ::5, 1] = 0.0 if value < 0 else value  # scores
    inputs[4][1, 0], inputs[5][1, 0], inputs[5][1, 2:] = torch.tensor([8.0, 4.0, 72.0, 60.0]), True, False
    inputs[4][1, 3], inputs[4][0, 2] = value, value  # a padded slot, and one that is not
    inputs[5][0, 2] = True
    got, want = assign(inputs, **options), assign(double(inputs), "dense", **options)
    assert want.fg_mask.any(1).all()
    for name in ("target_labels", "fg_mask", "target_gt_idx"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


def test_no_box_at_all() -> None:
    inputs = sample_assigner_inputs(CASE._replace(slots=0), STRIDES, seed=0)
    assert_alike(assign(inputs), assign(inputs, "dense"))
    inputs = sample_assigner_inputs(CASE, STRIDES, seed=0)
    inputs[5].zero_()
    assert_alike(assign(inputs), assign(inputs, "dense"))


def test_the_compact_form_and_repetition() -> None:
    """Programs in any order give the same bits; here twice the same order, with new memory."""
    inputs = sample_assigner_inputs(CASE, STRIDES, seed=7)
    one, other = assign(inputs), assign(inputs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))

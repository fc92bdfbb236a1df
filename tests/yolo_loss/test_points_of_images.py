"""Anchor points of each image (B, A, 2): the assignment is that of each image alone, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import oracle
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import TaskAlignedAssigner, make_anchors
from yolo_loss.assigner import IMPLEMENTATIONS
from yolo_loss.assignment.anchor_grid import candidate_ranges, expand_ranges, find_anchor_grids
from yolo_loss.assignment.dense import assign_dense, assign_in_chunks
from yolo_loss.checks import MAX_COORDINATE
from yolo_loss.execution.channels import Channels, ClassScores
from yolo_loss.explain import explain_assignment
from yolo_loss.structures import AssignmentResult, GroundTruth

STRIDES = (8.0, 16.0, 32.0)
SIDE = 96
OPTIONS = st.fixed_dictionaries(
    {
        "topk": st.sampled_from([1, 3, 10, 1000]),
        "alpha": st.sampled_from([0.0, 0.5, 1.0]),
        "beta": st.sampled_from([0.0, 1.0, 6.0]),
        "min_box_side": st.sampled_from([None, 0.0, 7.0, 40.0]),
        "topk2": st.sampled_from([None, 1, 2]),
        "eps": st.sampled_from([1e-9, 1.0]),
        "implementation": st.sampled_from([*IMPLEMENTATIONS, "auto"]),
    }
)


def grid() -> Tensor:
    """The points of an image."""
    points, stride = make_anchors([torch.zeros(1, 1, *size) for size in pyramid(SIDE, SIDE, STRIDES)], STRIDES)
    return points * stride


def padding(count: int) -> Tensor:
    """So many points that lie in no box, as the assigner's docstring describes them."""
    return torch.stack((torch.arange(count) * 1.0, torch.full((count,), -1.0 * MAX_COORDINATE)), dim=1)


def inputs_of(images: int, slots: int, seed: int, *, regular: bool = True) -> tuple[list[Tensor], list[int]]:
    """A batch in which each image has some of its grid's points, of a place of its own, and padding behind them."""
    generator = torch.Generator().manual_seed(seed)
    case = Case(images, slots, pyramid(SIDE, SIDE, STRIDES), 3)
    scores, boxes, points, *truth = sample_assigner_inputs(case, STRIDES, seed)
    counts, chosen = [], []
    for image in range(images):
        share = [0.0, 0.3, 0.9, 1.0][(seed + image) % 4]
        kept = torch.rand(len(points), generator=generator) < share
        kept[image] = True
        own = points[kept] + 3.0 * image
        counts.append(len(own))
        own = own if regular else own + torch.rand(own.shape, generator=generator)
        chosen.append(torch.cat((own, padding(len(points) - len(own)))))
    scores = (scores * 4).round() / 4  # ties
    return [scores, boxes, torch.stack(chosen), *truth], counts


def one_by_one(assigner: TaskAlignedAssigner, inputs: list[Tensor], counts: list[int]) -> list[AssignmentResult]:
    """Each image alone, without its padding and with points (A, 2)."""
    results = []
    for image, count in enumerate(counts):
        scores, boxes, points, *truth = (tensor[image : image + 1] for tensor in inputs)
        results.append(assigner(scores[:, :count], boxes[:, :count], points[0, :count], *truth))
    return results


def assert_equal(together: AssignmentResult, alone: list[AssignmentResult], counts: list[int]) -> None:
    """Equal to the bit, and padding is background."""
    for name, field in together._asdict().items():
        for image, (single, count) in enumerate(zip(alone, counts, strict=True)):
            assert torch.equal(field[image, :count], getattr(single, name)[0]), name
    for image, count in enumerate(counts):
        assert not together.fg_mask[image, count:].any()
        assert not together.target_scores[image, count:].any()


@given(
    images=st.integers(1, 4),
    slots=st.integers(0, 12),
    seed=st.integers(0, 1000),
    regular=st.booleans(),
    double=st.booleans(),
    options=OPTIONS,
)
def test_the_assignment_is_that_of_each_image_alone(
    images: int, slots: int, seed: int, regular: bool, double: bool, options: dict[str, Any]
) -> None:
    """For every option, M = 0 and padding among them, in both precisions."""
    inputs, counts = inputs_of(images, slots, seed, regular=regular)
    if double:
        inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    assigner = TaskAlignedAssigner(num_classes=3, **options)
    assert_equal(assigner(*inputs), one_by_one(assigner, inputs, counts), counts)


@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
def test_decisions_are_those_of_the_oracle(implementation: str) -> None:
    inputs, _ = inputs_of(3, 8, 2)
    numbers: dict[str, Any] = {"topk": 10, "alpha": 0.5, "beta": 6.0, "min_box_side": 16.0}
    result = TaskAlignedAssigner(num_classes=3, implementation=implementation, **numbers)(*inputs)
    for image in range(3):
        scores, boxes, points, *truth = (tensor[image : image + 1].double().numpy() for tensor in inputs)
        truth[0] = truth[0].astype(int)
        want = oracle.assign(scores, boxes, points[0], *truth, **numbers)
        assert result.fg_mask[image].tolist() == want.fg_mask[0].tolist()
        assert result.target_gt_idx[image].tolist() == want.target_gt_idx[0].tolist()
    assert result.fg_mask.any(dim=1).sum() > 1


@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
def test_points_of_all_images_in_each_form(implementation: str) -> None:
    """(A, 2), (1, A, 2) and the same points for each image."""
    scores, boxes, points, *truth = sample_assigner_inputs(Case(3, 9, pyramid(SIDE, SIDE, STRIDES), 3), STRIDES, 5)
    assigner = TaskAlignedAssigner(num_classes=3, implementation=implementation)
    shared = assigner(scores, boxes, points, *truth)
    for form in (points[None], points.expand(3, -1, -1)):
        for one, other in zip(assigner(scores, boxes, form, *truth), shared, strict=True):
            assert torch.equal(one, other)
    assert shared.fg_mask.any()


def test_chunks_of_a_gpu_take_the_points_of_their_images() -> None:
    (scores, boxes, points, *truth), _ = inputs_of(4, 8, 1)
    params = TaskAlignedAssigner(num_classes=3).params
    of_classes = ClassScores((Channels(scores.transpose(1, 2), 0, 3),), scores.dtype)
    arguments = (of_classes, boxes, points, GroundTruth(*truth), params)
    one, other = assign_dense(*arguments), assign_in_chunks(*arguments, limit=1)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert one.fg_mask.any()


def test_gaps_begin_runs_of_their_own() -> None:
    """Sets of two rows of 8 pixels each, of which some points are missing, and one of a row.

    In the first set 20 is missing: 4, 12 and 28, 36 lie on either side of a gap of 16, in both rows. The second lacks
    12 to 28 of its first row, so that 4 is a run of its own.
    """
    x = torch.tensor([[4, 12, 28, 36, 4, 12, 28, 36], [4, 36, 44, 52, 4, 12, 20, 28]]) * 1.0
    y = torch.tensor([[4] * 4 + [12] * 4, [4] * 4 + [12] * 4]) * 1.0
    grids = find_anchor_grids(torch.stack((x, y), dim=-1))
    assert grids.grid.rows.start.tolist() == [0, 2, 4, 6, 8, 9, 12]
    assert grids.grid.rows.length.tolist() == [2, 2, 2, 2, 1, 3, 4]
    assert grids.num_blocks.tolist() == [4, 3]
    assert grids.first_block.tolist() == [0, 4]


def test_sets_of_whole_grids_have_a_block_for_each_level() -> None:
    grids = find_anchor_grids(torch.stack([grid()] * 3 + [padding(len(grid()))]))
    assert grids.num_blocks.tolist() == [3, 3, 3, 1]


@given(images=st.integers(1, 4), seed=st.integers(0, 1000), regular=st.booleans())
def test_pairs_are_those_of_brute_force(images: int, seed: int, regular: bool) -> None:
    """Edges run through points, and boxes without a finite size have none or all."""
    inputs, _ = inputs_of(images, 1, seed, regular=regular)
    points, generator = inputs[2], torch.Generator().manual_seed(seed)
    corner = torch.randint(-5, 25, (images, 20, 2), generator=generator) * 4.0
    boxes = torch.cat((corner, corner + torch.randint(-2, 20, corner.shape, generator=generator) * 4.0), dim=-1)
    boxes[0, 0, 2], boxes[0, 1, 0], boxes[0, 2], boxes[0, 3, 3] = float("inf"), -float("inf"), float("nan"), 1e30
    valid = torch.rand(images, 20, generator=generator) > 0.2
    x, y = (coordinate.unsqueeze(1) for coordinate in points.unbind(-1))  # (B, 1, A)
    x1, y1, x2, y2 = boxes.split(1, dim=-1)  # (B, M, 1)
    inside = torch.stack((x - x1, y - y1, x2 - x, y2 - y)).amin(0) > 1e-9
    image, slot, anchor = (inside & valid[..., None]).nonzero().unbind(1)
    pairs = expand_ranges(candidate_ranges(points, boxes, valid, 1e-9))
    assert pairs.slot.tolist() == (image * 20 + slot).tolist()
    assert pairs.anchor.tolist() == (image * points.shape[1] + anchor).tolist()


def test_points_of_other_numbers_of_images_are_refused() -> None:
    (scores, boxes, points, *truth), _ = inputs_of(3, 2, 0)
    assigner = TaskAlignedAssigner(num_classes=3)
    with pytest.raises(ValueError, match=r"anc_points has shape \(2, 189, 2\), expected \(3, 189, 2\): \(B, A, 2\)"):
        assigner(scores, boxes, points[:2], *truth)
    points[2, 5, 0] = float("nan")
    with pytest.raises(ValueError, match=r"anc_points\[2, 5\] is \[nan"):
        assigner(scores, boxes, points, *truth)
    with pytest.raises(ValueError, match="explain each such image alone"):
        explain_assignment(assigner, scores, boxes, grid().expand(3, -1, -1), *truth)

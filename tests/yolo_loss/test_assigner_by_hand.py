"""Assignments small enough to work out on paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from yolo_loss import TaskAlignedAssigner
from yolo_loss.assigner import IMPLEMENTATIONS
from yolo_loss.structures import AssignmentResult

OPTIONS: dict[str, Any] = {"topk": 10, "alpha": 1.0, "beta": 1.0}

# One row of four anchors, 8 pixels apart, at y = 4.
POINTS = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [28.0, 4.0]])


@pytest.fixture(autouse=True, params=list(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case holds for each implementation."""
    monkeypatch.setitem(OPTIONS, "implementation", request.param)


def run(
    boxes: list[list[float]],
    gt_boxes: list[list[float]],
    *,
    scores: list[float] | None = None,
    labels: list[int] | None = None,
    mask: list[int] | None = None,
    **options: float | int,
) -> AssignmentResult:
    """One image, two classes; every anchor gives both classes its score."""
    slots = len(gt_boxes)
    pd_scores = torch.tensor([[[s, s] for s in scores or [1.0] * 4]])
    gt_labels = torch.tensor(labels or [0] * slots).reshape(1, slots, 1)
    valid = torch.tensor(mask or [1] * slots).reshape(1, slots, 1)
    assigner = TaskAlignedAssigner(num_classes=2, **{**OPTIONS, **options})
    result: AssignmentResult = assigner(
        pd_scores, torch.tensor([boxes]), POINTS, gt_labels, torch.tensor([gt_boxes]), valid
    )
    return result


def foreground(result: AssignmentResult) -> list[bool]:
    mask: Tensor = result.fg_mask[0]
    return [bool(value) for value in mask]


def test_a_perfect_box_scores_one() -> None:
    # Anchors 0 and 1 lie in (0, 0, 16, 8). Anchor 0 predicts it: u = 1, t = 1. Anchor 1 predicts its right half:
    # iou = 0.5; hull 16 x 8, so c2 = 320; centres 4 apart, rho2 = 16: -0.05; the aspects are 2 and 1:
    # v = 4/pi^2 (atan 1 - atan 2)^2 = 0.041958, a = v / (0.5 + v) = 0.077420, v a = 0.003248. u = 0.446752.
    # max_t = max_u = 1, so the soft scores are t itself.
    box = [0.0, 0.0, 16.0, 8.0]
    result = run([box, [8.0, 0.0, 16.0, 8.0], box, box], [box], labels=[1])
    assert foreground(result) == [True, True, False, False]
    assert result.target_scores[0, 0].tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert result.target_scores[0, 1].tolist() == pytest.approx([0.0, 0.446752], abs=1e-5)
    assert result.target_scores[0, 2:].abs().sum() == 0
    assert result.target_labels[0].tolist() == [1, 1, 1, 1]  # background repeats slot 0
    assert result.target_bboxes[0, 3].tolist() == box


def test_soft_scores_are_scaled_to_the_largest_overlap() -> None:
    # Same overlaps, scores 0.25 and 0.5: t = 0.25 and 0.223376, max_t = 0.25, max_u = 1: 1 and 0.893504.
    box = [0.0, 0.0, 16.0, 8.0]
    result = run([box, [8.0, 0.0, 16.0, 8.0], box, box], [box], scores=[0.25, 0.5, 1.0, 1.0])
    assert result.target_scores[0, :2, 0].tolist() == pytest.approx([1.0, 0.893504], abs=1e-5)


def test_equal_metrics_go_to_the_smaller_anchor_index() -> None:
    box = [0.0, 0.0, 32.0, 8.0]
    assert foreground(run([box] * 4, [box], topk=2)) == [True, True, False, False]


def test_a_tie_on_the_threshold_fills_what_room_is_left() -> None:
    # Metrics 0.5, 0.25, 0.5, 0.25 and k = 3: both larger ones and the first of the smaller.
    box = [0.0, 0.0, 32.0, 8.0]
    result = run([box] * 4, [box], topk=3, scores=[0.5, 0.25, 0.5, 0.25])
    assert foreground(result) == [True, True, True, False]


def test_a_contested_anchor_goes_to_the_larger_overlap() -> None:
    # All anchors predict the first box. Anchor 1 lies in both; its overlap with the first is 1.
    first, second = [0.0, 0.0, 16.0, 8.0], [8.0, 0.0, 24.0, 8.0]
    result = run([first] * 4, [first, second])
    assert foreground(result) == [True, True, True, False]
    assert result.target_gt_idx[0].tolist() == [0, 0, 1, 0]


def test_an_equally_contested_anchor_goes_to_the_smaller_slot() -> None:
    box = [0.0, 0.0, 32.0, 8.0]
    result = run([box] * 4, [box, box], labels=[1, 0])
    assert result.target_gt_idx[0].tolist() == [0, 0, 0, 0]
    assert result.target_labels[0].tolist() == [1, 1, 1, 1]


def test_the_owner_need_not_have_chosen_the_anchor() -> None:
    # Anchor 3 is wanted by slots 1 and 2 (k = 1: both predict best there), but slot 0, which lies over it too and
    # prefers anchor 0 by score, overlaps with its box most.
    whole, right, centre = [0.0, 0.0, 32.0, 8.0], [22.0, 0.0, 32.0, 8.0], [24.0, 0.0, 32.0, 8.0]
    boxes = [whole, whole, whole, [1.0, 0.0, 32.0, 8.0]]
    result = run(boxes, [whole, right, centre], topk=1)
    assert foreground(result) == [True, False, False, True]
    assert result.target_gt_idx[0, 3] == 0


def test_a_point_on_the_edge_is_outside() -> None:
    # The box's left edge runs through anchor 1: its margin is 0, not above eps.
    box = [12.0, 0.0, 24.0, 8.0]
    assert foreground(run([box] * 4, [box])) == [False, False, True, False]


def test_padding_slots_get_nothing() -> None:
    box = [0.0, 0.0, 32.0, 8.0]
    assert foreground(run([box] * 4, [box], mask=[0])) == [False] * 4


def test_labels_below_zero_count_as_zero() -> None:
    box = [0.0, 0.0, 32.0, 8.0]
    result = run([box] * 4, [box], labels=[-1])
    assert result.target_labels[0].tolist() == [0, 0, 0, 0]
    assert result.target_scores[0, :, 0].min() > 0.9


def test_small_boxes_are_enlarged_for_candidates_only() -> None:
    # 4 pixels about (8, 4), between the anchors 0 and 1: no candidate until it is enlarged to 16.
    box = [6.0, 2.0, 10.0, 6.0]
    assert foreground(run([box] * 4, [box])) == [False] * 4
    result = run([box] * 4, [box], min_box_side=16.0)
    assert foreground(result) == [True, True, False, False]
    assert result.target_bboxes[0, 0].tolist() == box


def test_topk2_keeps_the_best_of_what_was_won() -> None:
    box = [0.0, 0.0, 32.0, 8.0]
    result = run([box] * 4, [box], scores=[0.2, 0.4, 0.9, 0.1], topk2=1)
    assert foreground(result) == [False, False, True, False]
    assert result.target_scores[0, 2, 0] == pytest.approx(1.0)

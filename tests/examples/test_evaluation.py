"""Suppression and matching on cases worked by hand, and against a plain loop."""

import pytest
import torch
from torch import Tensor

from examples.evaluation import Found, count_found, iou_matrix, non_max_suppression, reported_boxes


def test_iou_of_pairs() -> None:
    square, shifted, far, empty = [0.0, 0, 2, 2], [1.0, 0, 3, 2], [5.0, 5, 6, 6], [0.0, 0, 0, 0]
    # Square and shifted share 1 x 2 of 4 + 4 - 2 = 6.
    overlaps = iou_matrix(torch.tensor([square, empty]), torch.tensor([square, shifted, far, empty]))
    assert overlaps.flatten().tolist() == pytest.approx([1, 1 / 3, 0, 0, 0, 0, 0, 0])


def test_a_suppressed_box_suppresses_nothing() -> None:
    # A chain: each overlaps the next by 6 of 14 (0.43), and the one after that by 2 of 18. The middle one falls to the
    # first, so the third stays though the middle one scored higher than it.
    boxes = torch.tensor([[0.0, 0, 10, 1], [4.0, 0, 14, 1], [8.0, 0, 18, 1]])
    assert non_max_suppression(boxes, torch.tensor([0.9, 0.8, 0.7]), iou=0.4).tolist() == [0, 2]
    assert non_max_suppression(boxes, torch.tensor([0.7, 0.8, 0.9]), iou=0.4).tolist() == [2, 0]
    assert non_max_suppression(boxes, torch.tensor([0.7, 0.9, 0.8]), iou=0.4).tolist() == [1]


def greedy(boxes: Tensor, scores: Tensor, iou: float) -> list[int]:
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if all(iou_matrix(boxes[[index]], boxes[[other]]).item() <= iou for other in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_suppression_equals_the_greedy_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(60, 2, generator=generator) * 10
    boxes = torch.cat((corners, corners + 1 + 4 * torch.rand(60, 2, generator=generator)), dim=1)
    scores = torch.rand(60, generator=generator)
    kept = non_max_suppression(boxes, scores, iou=0.3).tolist()
    assert kept == greedy(boxes, scores, iou=0.3)
    assert 1 < len(kept) < 60


def test_reports_sure_boxes_once() -> None:
    # Three predictions of 4 x 4 pixels: two at one place, and one that is too unsure.
    predictions = torch.tensor([[5.0, 5, 20], [5.0, 5, 20], [4.0, 4, 4], [4.0, 4, 4], [0.6, 0.8, 0.1]])
    assert reported_boxes(predictions, confidence=0.25).tolist() == [[3, 3, 7, 7]]


def test_a_tree_is_found_once() -> None:
    trees = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10]])
    # The second report is a second box on the first tree; the third overlaps the second tree by 4 of 16; the fourth
    # overlaps the third tree by just one half.
    reported = torch.tensor([[0.0, 0, 10, 9], [0.0, 0, 10, 10], [26.0, 0, 36, 10], [40.0, 0, 50, 5]])
    found = count_found(reported, trees)
    assert found == Found(trees=3, reported=4, hits=2)
    assert (found.recall, found.precision) == (2 / 3, 0.5)


def test_a_second_report_takes_the_next_free_tree() -> None:
    trees = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 8]])
    reported = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10]])
    assert count_found(reported, trees).hits == 2


@pytest.mark.parametrize(("reported", "trees"), [(0, 0), (0, 2), (2, 0)])
def test_nothing_to_match(reported: int, trees: int) -> None:
    found = count_found(torch.ones(reported, 4), torch.ones(trees, 4))
    assert found == Found(trees, reported, 0)
    assert (found.recall, found.precision) == (0, 0)

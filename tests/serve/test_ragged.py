"""Padding of the ragged batch and the anchor grid in numpy, against plain loops and their twins in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_assigner.serve.detection.collate import pad_ground_truth
from yolo_assigner.serve.detection.grid import anchor_points, count_points, maps_from_flat
from yolo_loss.collate import pad_ground_truth as pad_in_torch

FRACTION = st.floats(0, 1, width=32)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[int], list[int], list[list[float]]]:
    """B, and boxes of its images in any order; some images have none."""
    images = draw(st.integers(1, 4))
    rows = draw(
        st.lists(st.tuples(st.integers(0, images - 1), st.integers(0, 9), st.lists(FRACTION, min_size=4, max_size=4)))
    )
    return images, [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


@given(batches(), st.tuples(st.integers(1, 30), st.integers(1, 30)))
@settings(deadline=None)
def test_same_as_loops_and_as_torch(batch: tuple[int, list[int], list[int], list[list[float]]], cells: Any) -> None:
    images, batch_idx, cls, bboxes = batch
    height, width = cells[0] * 32, cells[1] * 32
    truth = pad_ground_truth(batch_idx, cls, bboxes, images, (height, width), num_classes=10)

    per_image: list[list[int]] = [[row for row, of in enumerate(batch_idx) if of == image] for image in range(images)]
    slots = max(len(rows) for rows in per_image)
    assert truth.gt_labels.shape == (images, slots, 1)
    for image, rows in enumerate(per_image):
        assert truth.gt_labels[image, : len(rows), 0].tolist() == [cls[row] for row in rows]
        for slot, row in enumerate(rows):
            x, y, w, h = (np.float32(value) for value in bboxes[row])
            x, w, y, h = x * np.float32(width), w * np.float32(width), y * np.float32(height), h * np.float32(height)
            assert truth.gt_bboxes[image, slot].tolist() == [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        assert not truth.mask_gt[image, len(rows) :].any()
        assert not truth.gt_bboxes[image, len(rows) :].any()

    expected = pad_in_torch(
        torch.tensor(batch_idx, dtype=torch.int64),
        torch.tensor(cls, dtype=torch.int64),
        torch.tensor(bboxes, dtype=torch.float32).reshape(-1, 4),
        images,
        (height, width),
    )
    for ours, theirs in zip(truth, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
        assert ours.dtype == theirs.numpy().dtype


def test_by_hand() -> None:
    """Image 1 gets its two boxes in the order of arrival, image 0 one and padding, image 2 none."""
    boxes = np.array([[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 0.5], [0, 0, 0, 0]])
    truth = pad_ground_truth([1, 0, 1], [[5.0], [6.0], [7.0]], boxes, 3, (100, 200))
    assert truth.gt_labels[..., 0].tolist() == [[6, 0], [5, 7], [0, 0]]
    assert truth.gt_bboxes[0].tolist() == [[0, 25, 100, 75], [0, 0, 0, 0]]
    assert truth.gt_bboxes[1].tolist() == [[0, 0, 200, 100], [0, 0, 0, 0]]
    assert truth.mask_gt[..., 0].tolist() == [[True, False], [True, False], [False, False]]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (([2], [0], [[0, 0, 1, 1]]), r"batch_idx\[0\] is 2, and the number of images is 2; .* from 0 to 1$"),
        (([0, -1], [0, 0], [[0, 0, 1, 1]] * 2), r"batch_idx\[1\] is -1"),
        (([0.5], [0], [[0, 0, 1, 1]]), r"batch_idx\[0\] is 0.5"),
        (([0], [3], [[0, 0, 1, 1]]), r"cls\[0\] is 3, and the number of classes is 3; .* from 0 to 2, or use a"),
        (([0], [-1], [[0, 0, 1, 1]]), r"cls\[0\] is -1"),
        (([0], [np.nan], [[0, 0, 1, 1]]), r"cls\[0\] is nan"),
        (([0], [[0, 1]], [[0, 0, 1, 1]]), r"cls has shape \(1, 2\)"),
        (([0], [0, 1], [[0, 0, 1, 1]]), "cls has 2 entries, batch_idx has 1"),
        (([0, 1], [0, 1], [[0, 0, 1, 1]]), r"bboxes has shape \(1, 4\), batch_idx has 2"),
        (([0], [0], [[0, 0, 1]]), r"give \(1, 4\)"),
        (([0, 0], [0, 0], [[0, 0, 1, 1], [0, np.inf, 1, 1]]), r"bboxes\[1\] is \[0.0, inf, 1.0, 1.0\]"),
    ],
)
def test_refusals_name_the_value(batch: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pad_ground_truth(*batch, batch_size=2, image_size=(64, 64), num_classes=3)


def test_points_are_cell_centres() -> None:
    points = anchor_points((16, 32), [8, 16])
    assert len(points) == count_points((16, 32), [8, 16]) == 10
    assert points[:5].tolist() == [[4, 4], [12, 4], [20, 4], [28, 4], [4, 12]]
    assert points[8:].tolist() == [[8, 8], [24, 8]]


def test_maps_are_flattened_row_by_row() -> None:
    random = np.random.default_rng(0)
    maps = [random.standard_normal((2, 7, 4, 8)), random.standard_normal((2, 7, 2, 4))]
    flat = np.concatenate([level.reshape(2, 7, -1) for level in maps], axis=2).transpose(0, 2, 1)
    for level, again in zip(maps, maps_from_flat(flat[..., :4], flat[..., 4:], (32, 64), [8, 16]), strict=True):
        np.testing.assert_array_equal(level, again)


def test_images_that_do_not_fit_the_strides() -> None:
    with pytest.raises(ValueError, match="100 x 64 is not made of whole cells of stride 8"):
        count_points((100, 64), [8, 16])

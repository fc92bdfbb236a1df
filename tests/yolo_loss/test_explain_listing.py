"""Documents that also list what would be a candidate with a larger ``min_box_side``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from examples.dataset import load_sample
from yolo_loss import DetectionLoss
from yolo_loss.explain import explain_document

SIDE = 24.0


@pytest.fixture(scope="module")
def arguments() -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    sample = load_sample()
    batch = {name: torch.from_numpy(np.asarray(values)) for name, values in sample.batch.items()}
    return [torch.from_numpy(feat) for feat in sample.feats], batch


def columns(document: dict[str, Any], image: int) -> dict[str, Any]:
    pairs: dict[str, Any] = document["images"][image]["pairs"]
    return pairs


@pytest.mark.parametrize("own", [None, 12.0])
def test_the_pairs_of_the_larger_side_are_added_in_their_order(own: float | None, arguments: Any) -> None:
    criterion = DetectionLoss(1, min_box_side=own)
    narrow = explain_document(criterion, *arguments)
    wide = explain_document(DetectionLoss(1, min_box_side=SIDE), *arguments)
    listed = explain_document(criterion, *arguments, listed_side=SIDE)
    assert (listed["listed_side"], listed["outcomes"][-1]) == (SIDE, "outside")
    assert "listed_side" not in narrow
    for image in range(2):
        pairs = columns(listed, image)
        inside = pairs["outcome"] != listed["outcomes"].index("outside")
        assert 0 < inside.sum() < len(inside)
        for name, values in columns(narrow, image).items():
            np.testing.assert_array_equal(pairs[name][inside], values)
        for name in ("slot", "anchor", "level", "iou", "score", "metric"):
            np.testing.assert_array_equal(pairs[name], columns(wide, image)[name])
        assert set(pairs["lost_to"][~inside].tolist()) == {-1}
        assert not pairs["weight"][~inside].any()
        assert not pairs["rank"][~inside].any()
        # Nothing else changes.
        assert listed["images"][image]["ground_truths"] == narrow["images"][image]["ground_truths"]


def test_a_side_below_the_own_one_is_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"listed_side is 8\.0, below the min_box_side 16\.0; give a larger"):
        explain_document(DetectionLoss(1, min_box_side=16.0), *arguments, listed_side=8.0)

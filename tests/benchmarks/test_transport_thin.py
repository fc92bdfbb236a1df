"""The batches and the table of the benchmark of thin requests; its figures are in ``benchmarks/results``."""

from __future__ import annotations

import json

import numpy as np

from benchmarks import transport_thin
from benchmarks.common.report import RESULTS


def test_batches_are_what_they_are_called() -> None:
    """16 different images of 30 boxes that lie in them, three classes in each."""
    batch = transport_thin.tree_inputs(3)
    images = transport_thin.IMAGES
    assert batch["pd_scores"].shape[:1] == batch["gt_bboxes"].shape[:1] == (images,)
    assert all(len(np.unique(labels)) <= 3 for labels in batch["gt_labels"])
    boxes = batch["gt_bboxes"]
    assert ((boxes[..., :2] < boxes[..., 2:]) & (boxes[..., :2] >= -1) & (boxes[..., 2:] <= 641)).all()
    assert len({boxes[image].round(1).tobytes() for image in range(images)}) == images


def test_the_stored_figures_have_their_table() -> None:
    stored = json.loads((RESULTS / "transport_thin.json").read_text(encoding="utf-8"))["batches"]
    assert list(stored) == ["trees", "trees, random classes", "large boxes"]
    for ways in stored.values():
        assert list(ways) == list(transport_thin.WAYS)
        assert ways["apart"]["megabytes"] <= ways["default"]["megabytes"] < ways["full"]["megabytes"]
    assert transport_thin.rows_table(stored).count("trees, random classes") == len(transport_thin.WAYS)

"""The pictures of the mathematics are drawn from the numbers that the page says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.draw_docs import TOPK, load_tree, main
from tests.docs.markdown import ROOT


def test_the_tree_has_what_the_page_says() -> None:
    tree = load_tree()
    text = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    assert len(tree.points) == 49
    assert "its 49 candidates on three levels" in text
    assert len(tree.strides.unique()) == 3
    assigned = tree.weights > 0
    assert int(assigned.sum()) == TOPK
    # The best anchor's weight is the best overlap among the assigned: t max_u / (max_t + eps) at max_t.
    torch.testing.assert_close(tree.weights.max(), tree.iou[assigned].max(), rtol=1e-4, atol=0)
    # The chosen ones have the largest metrics: no conflict took one away.
    assert set(tree.metric.topk(TOPK).indices.tolist()) == set(assigned.nonzero().flatten().tolist())


def test_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["draw_docs", "--out", str(tmp_path)])
    assert main() == 0
    drawn = {path.name for path in tmp_path.iterdir()}
    committed = {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    screenshots = {"inspector.webp", "inspector-dark.webp", "inspector-small.webp"}
    assert drawn == committed - screenshots - {"cpu.png", "flow.svg", "ultralytics.svg"}

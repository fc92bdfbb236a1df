"""Counts over rows, and the page that shows them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra audit")

from yolo_assigner.audit.report import render
from yolo_assigner.audit.structures import BadFile, ShardFacts
from yolo_assigner.audit.summary import size_name, summarise, worst_rows

TRIED = {"min_box_side": 16.0, "imgsz": 1280.0, "stride": 4.0}


def row(**values: Any) -> dict[str, Any]:
    """An assigned object of 20 x 20 pixels, changed by the values."""
    usual = {
        "image": "a.png",
        "slot": 0,
        "label": 0,
        "x1": 0.0,
        "y1": 0.0,
        "x2": 20.0,
        "y2": 20.0,
        "reason": "assigned",
        "sentence": "3 anchors learn it.",
        "remedy": "",
        "stride": 8.0,
        "num_candidates": [6, 1, 1],
        "num_assigned": 3,
        "weight_sum": 1.0,
        "best_iou": 0.5,
        "helping_side": 0.0,
        "clipped_share": 0.0,
        "duplicate_of": None,
        "weak": False,
        "side_assigned": 3,
        "larger_candidates": 30,
        "finer_candidates": 30,
    }
    return usual | values


NOTHING = {"stride": None, "num_candidates": [0, 0, 0], "num_assigned": 0, "weight_sum": 0.0, "best_iou": 0.0}
ROWS = [
    row(),
    row(slot=1, side_assigned=0, clipped_share=0.5),
    row(slot=2, reason="no_anchor", y2=4.0, helping_side=9.0, finer_candidates=0, **NOTHING),
    row(slot=3, reason="no_anchor", y2=4.0, helping_side=14.0, side_assigned=0, **NOTHING),
    row(slot=4, reason="contested", label=1, stride=16.0, side_assigned=0, num_candidates=[4, 0, 0], weight_sum=0.0),
    row(slot=5, reason="invalid", x2=0.0, side_assigned=0, **NOTHING),
    row(slot=6, weak=True, duplicate_of=0, weight_sum=0.01, num_candidates=[2, 3, 3]),
]
FACTS = [
    ShardFacts("", 2, 1, 7, (BadFile("b.png", "broken"),), {"strides": [8, 16, 32]}, TRIED),
    ShardFacts("", 0, 0, 0, (BadFile("<c>.png", "broken"),), {}, {}),
]


def test_counts() -> None:
    found = summarise(ROWS, FACTS, ["tree"])
    assert (found.images, found.unlabelled, found.ground_truths, len(found.bad)) == (2, 1, 7, 2)
    assert found.reasons == {"assigned": 3, "no_anchor": 2, "contested": 1, "invalid": 1}
    assert found.by_class["tree"] == {"assigned": 3, "no_anchor": 2, "invalid": 1}
    assert found.by_class["1"] == {"contested": 1}
    assert list(found.by_level.items()) == [
        ("8", {"assigned": 3}),
        ("16", {"contested": 1}),
        ("none", {"no_anchor": 2, "invalid": 1}),
    ]
    # 20 x 4 pixels are a square of 8.9.
    assert found.by_size["8 to 16"] == {"no_anchor": 2}
    assert found.flags == {"clipped": 1, "duplicate": 1, "weak": 1}
    # Of three assigned objects one is clipped, at half of its sides.
    assert [found.clipped_boxes, found.clipped_sides] == pytest.approx([1 / 3, 1 / 6])
    # Objects of 16 to 32 pixels: 8, 8, 4 and 8 candidates.
    assert found.candidates["16 to 32"] == (4, 0, 7.0, [4.5, 1.25, 1.25])
    assert found.candidates["8 to 16"] == (2, 2, 0.0, [0, 0, 0])


def test_what_would_help() -> None:
    found = summarise(ROWS, FACTS, ()).help
    assert (found.unassigned, found.without_candidate) == (3, 2)
    assert (found.side_gained, found.side_lost) == (1, 1)
    assert (found.larger, found.finer) == (2, 1)
    assert found.by_side == {"4": 0, "6": 0, "8": 0, "12": 1, "16": 2, "24": 2, "32": 2}


def test_nothing_at_all() -> None:
    found = summarise([], [ShardFacts("", 0, 0, 0, (), {}, {})], ())
    assert (found.ground_truths, found.reasons, found.clipped_boxes) == (0, {}, 0)
    assert "objects" in render(found, [], None)


def test_sizes() -> None:
    sides = (0.0, 7.9, 8.0, 255.0, 256.0, float("nan"))
    names = [size_name(row(x2=side, y2=side)) for side in sides]
    assert names == ["below 8", "below 8", "8 to 16", "128 to 256", "from 256", "below 8"]


def test_the_worst_come_first() -> None:
    # Unassigned ones by their place where nothing else tells them apart, then flagged ones, then the others.
    assert [one["slot"] for one in worst_rows(ROWS, 10)] == [2, 3, 5, 4, 6, 1, 0]
    assert [one["slot"] for one in worst_rows(iter(ROWS), 2)] == [2, 3]


def test_the_page_escapes_what_it_shows() -> None:
    rows = [row(image='<img src="x">', reason="no_anchor", sentence="2 < 3", remedy="a & b", weak=True)]
    page = render(summarise(ROWS, FACTS, ["<b>"]), rows, None)
    assert "object 0 of &lt;img src=&quot;x&quot;&gt;" in page
    assert "2 &lt; 3" in page
    assert "a &amp; b" in page
    assert "<b>" not in page
    assert "&lt;c&gt;.png" in page
    assert "1 of 3 objects that are not learned get anchors, 1 lose theirs" in page
    assert "2 of 2 objects without a candidate get some" in page

"""The functions of ``python -m benchmarks.audit`` on a few pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra audit")

from benchmarks.audit import Clock, copy_pictures, time_parts
from yolo_assigner.audit.sources import find_source


def test_parts_are_timed(weights: Path, tmp_path: Path) -> None:
    data = copy_pictures(tmp_path / "set", 3)
    source = find_source(data)
    assert [len(Path(item.label).read_text().splitlines()) for item in source.items] == [37, 61, 37]
    seconds = time_parts(data, weights, 64, 2)
    assert set(seconds) == {"reading", "detector", "explaining", "writing"}
    assert min(seconds.values()) > 0
    assert sorted(path.name for path in data.iterdir()) == ["images", "labels"]


def test_a_part_adds_up() -> None:
    clock = Clock()
    assert [clock.time("a", lambda: 1), clock.time("b", lambda: 2), clock.time("a", lambda: 3)] == [1, 2, 3]
    once = clock.seconds["a"]
    clock.time("a", lambda: sum(range(1000)))
    assert clock.seconds["a"] > once

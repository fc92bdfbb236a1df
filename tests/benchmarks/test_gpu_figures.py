"""The floor, the goals and the table: figures from figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.contenders import Setting
from benchmarks.gpu.floor import anchors_of, bytes_of, floor_ms
from benchmarks.gpu.goals import GOALS, outcome
from benchmarks.gpu.store import Store
from benchmarks.gpu.table import report
from benchmarks.gpu.times import left_out

KEY = {"code": "1"}


def test_bytes_of_the_assigner() -> None:
    # 64 pixels: 64 + 16 + 4 = 84 anchors. Read: 84 x 3 scores and 84 boxes, 84 points, 5 ground truths of 8 + 16 + 1
    # bytes. Written: labels and slots of 8 bytes, boxes, 84 x 3 scores, a mask.
    setting = Setting("assigner", 1, 5, image=64, classes=3)
    assert anchors_of(setting) == 84
    read = 84 * 3 * 4 + 84 * 16 + 84 * 8 + 5 * 25
    written = 84 * 8 + 84 * 8 + 84 * 16 + 84 * 3 * 4 + 84
    assert bytes_of(setting, 4) == read + written
    assert bytes_of(setting, 2) == read + written - 84 * 3 * 2  # half the scores' bytes are read, all are written


def test_bytes_of_the_loss() -> None:
    setting = Setting("loss", 2, 5, image=64, classes=3)
    maps, truth = 2 * 84 * (64 + 3) * 4, 2 * 5 * 25
    assert bytes_of(setting, 4) == maps + truth
    assert bytes_of(setting._replace(task="loss+grad"), 4) == 2 * maps + truth
    assert floor_ms(setting, 4, 1000.0) == maps + truth


def row(task: str, batch: int, slots: int, precision: str = "fp32", **contenders: Any) -> dict[str, Any]:
    return {
        "task": task,
        "batch": batch,
        "slots": slots,
        "precision": precision,
        "floor_ms": 0.1,
        "contenders": contenders,
    }


def outcomes(*rows: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {goal.text: outcome(goal, rows) for goal in GOALS}


def test_goals() -> None:
    found = outcomes(
        row("assigner", 16, 100, auto={"ms": 0.5}, sparse={"ms": 0.3}, reference={"ms": 3.0}),
        row("assigner", 16, 100, "fp16", auto={"ms": 0.01}),
        row("loss+grad", 16, 30, auto={"ms": 0.41}, tensorrt={"reason": "not there"}, reference={"ms": 2.0}),
        row(
            "assigner",
            16,
            300,
            auto={"ms": 1, "peak_mib": 90.0},
            graph={"device_mib": 9},
            reference={"peak_mib": 901.0},
        ),
    )
    assert found["assigner, times faster than the reference"] == ("10.0 (sparse)", "reached")
    assert found["loss and gradients, times faster than the reference"] == ("4.9 (auto)", "missed")
    assert found["assigner, times less memory than the reference"] == ("10.0 (auto)", "reached")
    assert found["assigner, times the floor"] == ("3.0 (sparse)", "reached")
    assert found["loss and gradients, times the floor"] == ("4.1 (auto)", "missed")
    assert found["loss and gradients, times less memory"] == ("not measured", "unknown")


def test_a_goal_without_its_figures_is_neither_reached_nor_missed() -> None:
    found = outcomes(
        {**row("assigner", 16, 100, auto={"ms": 0.5}, reference={"reason": "not installed"}), "floor_ms": None},
        row("loss+grad", 16, 30, auto={"reason": "broken"}, reference={"ms": 2.0}),
    )
    assert found["assigner, times faster than the reference"] == (
        "not measured: ms of the reference (not installed)",
        "unknown",
    )
    assert found["assigner, times the floor"] == ("not measured: the bandwidth of copies", "unknown")
    assert found["loss and gradients, times faster than the reference"] == ("not measured: ms of ours", "unknown")


def test_the_report(tmp_path: Path) -> None:
    store, name = Store(tmp_path / "gpu.json", KEY), "times assigner 16 x 100 fp32"
    store.finish("environment", {"device": "a GPU | of theirs"}, 0.0)
    good = {"what": "scores", "figure": 1e-7, "limit": 1e-4, "ok": True}
    store.finish("correctness", [good, {**good, "figure": 1.0, "ok": False}], 0.0)
    store.fail("waiting", "RuntimeError: why")
    entries: dict[str, Any] = {
        "auto": {"ms": 0.25, "peak_mib": 12.34},
        "auto graph": {"ms": 0.2, "device_mib": 7.0},
        "tensorrt": {"reason": "not there"},
    }
    store.finish(name, row("assigner", 16, 100, **entries), 0.0)
    text = report(store, ["environment", "correctness", "waiting", "bandwidth", name])
    assert "| device | a GPU / of theirs |" in text
    assert "| scores | 1.0e-07 | 1e-04 | ok |\n| scores | 1.0e+00 | 1e-04 | WRONG |" in text
    assert "| 16 x 100 | 0.100 | 0.250 (2.5) | 0.200 (2.0) |" in text
    assert "| 16 x 100 | 12.3 | ~7 |" in text
    assert "| assigner, times the floor, 16 x 100 | <= 4 | 2.0 (auto graph) | reached |" in text
    assert "* waiting: RuntimeError: why\n" in text
    assert "* bandwidth: not run yet: run the command again\n* tensorrt: not there" in text


@pytest.mark.parametrize(
    ("name", "slots", "compiling", "left"),
    [
        ("auto graph", 30, False, False),
        ("auto compiled", 30, False, True),
        ("auto compiled", 300, True, False),
        ("dense whole", 30, True, False),
        ("dense whole graph", 300, True, True),
    ],
)
def test_what_is_left_out(name: str, slots: int, compiling: bool, left: bool) -> None:
    assert bool(left_out(Setting("loss+grad", 16, slots), "fp32", name, compiling)) == left

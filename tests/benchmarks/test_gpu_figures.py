"""Floors, goals and tables of the GPU benchmark, from given figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.common.inputs import Setting
from benchmarks.gpu.contenders import REFERENCE
from benchmarks.gpu.floor import Needed, floor_bytes, needed_of
from benchmarks.gpu.report import EXTRA, FASTER, FLOOR, GOALS, TIME, outcome, report
from benchmarks.gpu.results import Entry, Results
from yolo_loss import GroundTruth

KEY = {"code": "1"}


def test_the_floor() -> None:
    setting = Setting("assigner", 1, 3, image=64, classes=3)  # 64 + 16 + 4 = 84 anchors
    # Two boxes of two classes around the first point of stride 8, at (4, 4); the third box is padding.
    boxes = torch.tensor([[[0.0, 0.0, 6.0, 6.0], [0.0, 0.0, 6.0, 7.0], [0.0, 0.0, 64.0, 64.0]]])
    truth = GroundTruth(torch.tensor([[[0], [2], [1]]]), boxes, torch.tensor([[[1.0], [1.0], [0.0]]]))
    needed = needed_of(setting, truth)
    assert needed == Needed(1, 2)
    assert needed_of(setting, truth._replace(gt_labels=torch.tensor([[[2], [2], [1]]]))) == Needed(1, 1)
    # Two scores, one box, all points, and three ground truths of 8 + 16 + 1 bytes.
    read = 2 * 4 + 1 * 16 + 84 * 8 + 3 * 25
    written = 84 * 8 + 84 * 16 + 84 * 3 * 4 + 84  # labels, boxes, scores, mask
    assert floor_bytes(setting, 4, needed) == read + written
    assert floor_bytes(setting, 2, needed) == read + written - 2 * 2  # scores are written in float32 all the same
    maps = 84 * 3 * 4 + 64 * 4  # all class logits, and the box logits of one anchor
    assert floor_bytes(setting._replace(task="loss"), 4, needed) == maps + 3 * 25
    gradients = 84 * (64 + 3) * 4
    assert floor_bytes(setting._replace(task="loss+grad"), 4, needed) == maps + 3 * 25 + gradients


def timed(task: str, slots: int, **contenders: float | Entry) -> dict[str, Entry]:
    """Entries of one row; 100 MiB must move."""
    row: dict[str, Any] = {"task": task, "batch": 16, "slots": slots, "precision": "fp32", "floor_mib": 100.0}
    found = {}
    for key, figures in contenders.items():
        name = key.replace("_", " ")
        extra = figures if isinstance(figures, dict) else {"ms": figures}
        found[f"time {task} 16 x {slots} fp32, {name}"] = {**row, **extra, "contender": name}
    return found


def compared(task: str, *names: str, ok: bool = True) -> dict[str, Entry]:
    check = {"what": "scores", "figure": 1e-7 if ok else 1.0, "limit": 1e-4, "ok": ok}
    return {f"compare {task} fp32, {name}": {"checks": [check], "contender": name} for name in names}


# 100 MiB at 1048.576 GB/s are 0.1 ms.
SPEED: dict[str, Entry] = {"bandwidth": {"GB/s": 1048.576}}


def outcomes(entries: dict[str, Entry]) -> dict[tuple[str, str], tuple[str, str]]:
    return {(goal.figure, goal.task): outcome(goal, entries) for goal in GOALS}


def test_goals() -> None:
    found = outcomes(
        {
            **SPEED,
            **compared("assigner", "auto", "sparse", "auto graph"),
            **compared("loss+grad", "auto", "auto graph", "triton graph", "onnxruntime dense"),
            **timed("assigner", 100, auto=0.5, sparse=0.3, reference=3.0, auto_graph=0.2),
            **timed(
                "loss+grad", 30, auto=0.51, auto_graph=0.3, triton_graph=0.26, onnxruntime_dense=0.1, reference=2.5
            ),
            **timed("assigner", 300, auto={"ms": 1.0, "peak_mib": 90.0, "returned_mib": 58.0}),
        }
    )
    assert found[FASTER, "assigner"] == ("10.00 (sparse)", "reached")
    assert found[FLOOR, "assigner"] == ("2.00 (auto graph)", "reached")
    assert found[FASTER, "loss+grad"] == ("4.90 (auto)", "missed")  # neither graphs nor exported models
    assert found[TIME, "loss+grad"] == ("0.51 (auto)", "missed")
    assert found[FLOOR, "loss+grad"] == ("2.60 (triton graph)", "missed")
    assert found[EXTRA, "assigner"] == ("32.00 (auto)", "reached")
    assert found[EXTRA, "loss+grad"][1] == "unknown"


def test_a_goal_without_its_figures_is_neither_reached_nor_missed() -> None:
    entries = {**compared("assigner", "auto", "auto graph"), **timed("assigner", 100, auto=0.5, auto_graph=0.1)}
    found = outcomes(entries)
    assert found[FASTER, "assigner"][1] == "unknown"  # no reference
    assert found[FLOOR, "assigner"][1] == "unknown"  # no speed of copies


def test_only_what_was_compared_and_is_right_counts() -> None:
    entries = {
        **timed("assigner", 100, auto=0.4, sparse=0.3, triton=0.1, reference=4.0),
        **compared("assigner", "auto"),
        **compared("assigner", "sparse", ok=False),
        **compared("loss+grad", "triton"),
    }
    assert outcomes(entries)[FASTER, "assigner"] == ("10.00 (auto)", "reached")


def test_the_report(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    earlier = Results(path, {"code": "0"})
    for name, entry in {**compared("loss+grad", "auto"), **timed("loss+grad", 30, auto=0.45)}.items():
        earlier.keep(name, entry)
    results = Results(path, KEY)
    wrong = {"checks": [{"what": "gradient", "figure": 1.0, "limit": 1e-4, "ok": False}], "contender": "triton"}
    entries: dict[str, Entry] = {
        "environment": {"device": "a GPU | of theirs", "contender": ""},
        **SPEED,
        **compared("assigner", "auto"),
        "compare assigner fp32, triton": wrong,
        **timed("assigner", 100, auto={"ms": 0.25, "peak_mib": 12.34, "returned_mib": 10.0}, auto_graph=0.2),
        "compare assigner fp32, sparse": {"contender": "sparse", "reason": "RuntimeError: why", "failed": True},
    }
    for name, entry in entries.items():
        results.keep(name, entry)
    text = report(results, [*entries, "service, dense"])
    assert "| device | a GPU / of theirs |" in text
    assert "| 16 x 100 | 0.100 | 0.250 (2.5) | 0.200 (2.0) | 12 (2) |" in text
    assert "2 comparisons, 1 wrong." in text
    assert "| gradient | 1.0e+00 | 1e-04 |" in text
    assert "* sparse: RuntimeError: why" in text
    assert "* service, dense: not run yet: run the command again" in text
    now, before = text.split("## Measured earlier")
    line = "| Loss, forward and backward, 16 x 30: ms | <= 0.5 |"
    assert f"{line} 0.45 (auto) | reached |" in before
    assert f"{line} not measured" in now
    assert REFERENCE not in entries

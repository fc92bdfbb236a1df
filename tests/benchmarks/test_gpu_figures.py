"""Floors, goals and tables of the GPU benchmark, from given figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.common.inputs import Setting
from benchmarks.gpu.contenders import REFERENCE
from benchmarks.gpu.measure import EXTRA, MS, PEAK, floor_bytes
from benchmarks.gpu.report import FASTER, FLOOR, TARGETS, outcome, report
from benchmarks.gpu.results import Entry, Results
from yolo_loss import GroundTruth

KEY = {"code": "1"}


def test_the_floor() -> None:
    setting = Setting("assigner", 1, 3, image=64, classes=3)  # 64 + 16 + 4 = 84 anchors
    # Two boxes of two classes around the first point of stride 8, at (4, 4); the third box is padding.
    boxes = torch.tensor([[[0.0, 0.0, 6.0, 6.0], [0.0, 0.0, 6.0, 7.0], [0.0, 0.0, 64.0, 64.0]]])
    truth = GroundTruth(torch.tensor([[[0], [2], [1]]]), boxes, torch.tensor([[[1.0], [1.0], [0.0]]]))
    # Two scores, one box, all points, and three ground truths of 8 + 16 + 1 bytes.
    read = 2 * 4 + 1 * 16 + 84 * 8 + 3 * 25
    written = 84 * 8 + 84 * 16 + 84 * 3 * 4 + 84  # labels, boxes, scores, mask
    assert floor_bytes(setting, 4, truth) == read + written
    assert floor_bytes(setting, 2, truth) == read + written - 2 * 2  # scores are written in float32 all the same
    one_class = truth._replace(gt_labels=torch.tensor([[[2], [2], [1]]]))
    assert floor_bytes(setting, 4, one_class) == read + written - 4
    maps = 84 * 3 * 4 + 64 * 4  # all class logits, and the box logits of one anchor
    assert floor_bytes(setting._replace(task="loss"), 4, truth) == maps + 3 * 25
    gradients = 84 * (64 + 3) * 4
    assert floor_bytes(setting._replace(task="loss+grad"), 4, truth) == maps + 3 * 25 + gradients


def timed(task: str, slots: int, **contenders: float | Entry) -> dict[str, Entry]:
    """Entries of one row; 100 MiB must move."""
    row: dict[str, Any] = {"task": task, "size": f"16 x {slots}", "precision": "fp32", "floor, MiB": 100.0}
    found = {}
    for key, figures in contenders.items():
        name = key.replace("_", " ")
        extra = figures if isinstance(figures, dict) else {MS: figures}
        found[f"time {task} 16 x {slots} fp32, {name}"] = {**row, **extra, "contender": name}
    return found


def compared(task: str, *names: str, ok: bool = True) -> dict[str, Entry]:
    check = {"what": "scores", "figure": 1e-7 if ok else 1.0, "limit": 1e-4, "ok": ok}
    return {f"compare {task} fp32, {name}": {"checks": [check], "contender": name} for name in names}


# 100 MiB at 1048.576 GB/s are 0.1 ms.
SPEED: dict[str, Entry] = {"bandwidth": {"GB/s": 1048.576}}


def outcomes(entries: dict[str, Entry]) -> dict[tuple[str, str], tuple[str, str, bool]]:
    """Contender, figure, and whether the goal is reached, of the goals with a figure."""
    found = {(target.figure, target.task): outcome(target, entries) for target in TARGETS}
    return {
        place: (goal.what.split("(")[1].rstrip(")"), f"{goal.reached:.2f}", goal.met)
        for place, goal in found.items()
        if goal is not None
    }


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
            **timed("assigner", 300, auto={MS: 1.0, PEAK: 90.0, EXTRA: 32.0}),
        }
    )
    assert found == {
        (FASTER, "assigner"): ("sparse", "10.00", True),
        (FASTER, "loss+grad"): ("auto", "4.90", False),  # neither graphs nor exported models
        (MS, "loss+grad"): ("auto", "0.51", False),
        (FLOOR, "assigner"): ("auto graph", "2.00", True),
        (FLOOR, "loss+grad"): ("triton graph", "2.60", False),
        (EXTRA, "assigner"): ("auto", "32.00", True),
    }


def test_a_goal_without_its_figures_is_neither_reached_nor_missed() -> None:
    entries = {**compared("assigner", "auto", "auto graph"), **timed("assigner", 100, auto=0.5, auto_graph=0.1)}
    assert outcomes(entries) == {}  # no reference, and no speed of copies


def test_only_what_was_compared_and_is_right_counts() -> None:
    entries = {
        **timed("assigner", 100, auto=0.4, sparse=0.3, triton=0.1, reference=4.0),
        **compared("assigner", "auto"),
        **compared("assigner", "sparse", ok=False),
        **compared("loss+grad", "triton"),
    }
    assert outcomes(entries) == {(FASTER, "assigner"): ("auto", "10.00", True)}


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
        **timed("assigner", 100, auto={MS: 0.25, PEAK: 12.34, EXTRA: 2.34}, auto_graph=0.2),
        "compare assigner fp32, sparse": {"contender": "sparse", "reason": "RuntimeError: why", "failed": True},
    }
    for name, entry in entries.items():
        results.keep(name, entry)
    text = report(results, [*entries, "service, dense"])
    assert "| device | a GPU / of theirs |" in text
    assert "| assigner | fp32 | 16 x 100 | auto | 0.250 |  | 2.5 | 12 | 2 |" in text
    assert "| assigner | fp32 | 16 x 100 | auto graph | 0.200 |  | 2.0 |  |  |" in text
    assert "2 comparisons, 1 wrong." in text
    assert "| compare assigner fp32, triton: gradient | 1.0e+00 | 1e-04 |" in text
    assert "* sparse: RuntimeError: why" in text
    assert "* service, dense: not run yet: run the command again" in text
    now, before = text.split("## Measured earlier")
    assert "| loss+grad 16 x 30: ms (auto) | <= 0.5 | 0.45 | yes |" in before
    assert "loss+grad 16 x 30: ms;" in now.split("Not measured", 1)[1]
    assert REFERENCE not in entries

"""Floors, goals and tables of the GPU benchmark, from given figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.contenders import Setting
from benchmarks.gpu.contenders import left_out
from benchmarks.gpu.floor import Needed, anchors_of, bytes_of, floor_ms, needed_bytes, needed_of
from benchmarks.gpu.goals import GOALS, outcome, right_contenders
from benchmarks.gpu.report import report
from benchmarks.gpu.store import Store
from yolo_loss import GroundTruth

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
    assert floor_ms(1000.0, 2**20 / 1e6) == 1000.0  # 1000 MiB at one MiB a millisecond


def test_the_stricter_floor() -> None:
    setting = Setting("assigner", 1, 3, image=64, classes=3)
    # Two boxes of two classes around the first point of stride 8, at (4, 4); the third box is padding.
    boxes = torch.tensor([[[0.0, 0.0, 6.0, 6.0], [0.0, 0.0, 6.0, 7.0], [0.0, 0.0, 64.0, 64.0]]])
    truth = GroundTruth(torch.tensor([[[0], [2], [1]]]), boxes, torch.tensor([[[1.0], [1.0], [0.0]]]))
    needed = needed_of(setting, truth)
    assert needed == Needed(1, 2)
    same = truth._replace(gt_labels=torch.tensor([[[2], [2], [1]]]))
    assert needed_of(setting, same) == Needed(1, 1)
    read = 2 * 4 + 1 * 16 + 84 * 8 + 3 * 25
    written = 84 * 8 + 84 * 16 + 84 * 3 * 4 + 84  # labels, boxes, scores, mask
    assert needed_bytes(setting, 4, needed) == read + written
    maps = 84 * 3 * 4 + 64 * 4  # all class logits, and the box logits of one anchor
    assert needed_bytes(setting._replace(task="loss"), 4, needed) == maps + 3 * 25
    gradients = 84 * (64 + 3) * 4
    assert needed_bytes(setting._replace(task="loss+grad"), 4, needed) == maps + 3 * 25 + gradients


def row(task: str, batch: int, slots: int, precision: str = "fp32", **contenders: Any) -> dict[str, Any]:
    return {
        "task": task,
        "batch": batch,
        "slots": slots,
        "precision": precision,
        "floor_mib": 200.0,
        "needed_mib": 100.0,
        "floor_ms": 0.2,
        "needed_ms": 0.1,
        "contenders": contenders,
    }


def outcomes(*rows: dict[str, Any]) -> dict[str, tuple[str, str]]:
    checks = [compared(row["task"], row["precision"], name) for row in rows for name in row["contenders"]]
    return {goal.text: outcome(goal, rows, right_contenders(checks)) for goal in GOALS}


def compared(task: str, precision: str, name: str, ok: bool = True) -> dict[str, Any]:
    return {
        **{"task": task, "precision": precision, "contender": name},
        **{"what": f"{task} {precision}, {name}", "figure": 1e-7, "limit": 1e-4, "ok": ok},
    }


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
    assert found["assigner, times the stricter floor"] == ("3.0 (sparse)", "reached")
    assert found["loss and gradients, times the stricter floor"] == ("4.1 (auto)", "missed")
    assert found["loss and gradients, times less memory"] == ("not measured", "unknown")


def test_a_goal_without_its_figures_is_neither_reached_nor_missed() -> None:
    found = outcomes(
        {**row("assigner", 16, 100, auto={"ms": 0.5}, reference={"reason": "not installed"}), "needed_ms": None},
        row("loss+grad", 16, 30, auto={"reason": "broken"}, reference={"ms": 2.0}),
    )
    assert found["assigner, times faster than the reference"] == (
        "not measured: ms of the reference (not installed)",
        "unknown",
    )
    assert found["assigner, times the stricter floor"] == ("not measured: the bandwidth of copies", "unknown")
    assert found["loss and gradients, times faster than the reference"] == (
        "not measured: ms of one of ours that was compared and is right",
        "unknown",
    )


def test_only_what_was_compared_and_is_right_counts() -> None:
    entries: dict[str, Any] = {
        name: {"ms": ms} for name, ms in (("auto", 0.4), ("sparse", 0.3), ("triton", 0.1), ("dense", 0.2))
    }
    rows = [row("assigner", 16, 100, **entries, reference={"ms": 4.0})]
    checks = [
        *(compared("assigner", "fp32", name) for name in ("auto", "sparse")),
        compared("assigner", "fp32", "sparse", ok=False),  # one of its two figures
        compared("assigner", "fp16", "triton"),
        {**compared("assigner", "fp32", "triton"), "ok": False},
        {"task": "assigner", "precision": "fp32", "contender": "dense", "what": "", "reason": "missing", "ok": True},
    ]
    right = right_contenders(checks)
    assert right == {("assigner", "fp32"): {"auto"}, ("assigner", "fp16"): {"triton"}}
    assert outcome(GOALS[0], rows, right) == ("10.0 (auto)", "reached")


def test_beside_the_reference_stand_those_that_pad_too() -> None:
    entries = {"auto graph": 0.4, "dense whole graph": 0.1, "onnxruntime dense": 0.2, "tensorrt": 0.2}
    contenders: dict[str, Any] = {name: {"ms": ms} for name, ms in entries.items()}
    found = outcomes(
        row("loss+grad", 16, 30, **contenders, reference={"ms": 2.0}),
        row("assigner", 16, 100, tensorrt={"ms": 0.2}, reference={"ms": 3.0}),
    )
    assert found["loss and gradients, times faster than the reference"] == ("5.0 (auto graph)", "reached")
    assert found["loss and gradients, times the stricter floor"] == ("1.0 (dense whole graph)", "reached")
    assert found["assigner, times faster than the reference"] == ("15.0 (tensorrt)", "reached")


def test_the_report(tmp_path: Path) -> None:
    store, name = Store(tmp_path / "gpu.json", KEY), "times assigner 16 x 100 fp32"
    store.finish("environment", {"device": "a GPU | of theirs"}, 0.0)
    good = {**compared("assigner", "fp32", "auto"), "what": "scores"}
    wrong = {**compared("assigner", "fp32", "auto graph", ok=False), "what": "scores", "figure": 1.0}
    store.finish("correct assigner fp32", [good, wrong], 0.0)
    store.begin_entry("correct loss fp32", "sparse")
    store.keep_entry("correct loss fp32", "sparse", [{"what": "kept", "figure": 1e-7, "limit": 1e-4, "ok": True}])
    store.fail("waiting", "RuntimeError: why")
    entries: dict[str, Any] = {
        "auto": {"ms": 0.25, "peak_mib": 12.34},
        "auto graph": {"ms": 0.2, "device_mib": 7.0},
        "tensorrt": {"reason": "not there"},
    }
    store.finish(name, {**row("assigner", 16, 100, **entries), "floor_ms": None, "needed_ms": None}, 0.0)
    names = ["environment", "correct assigner fp32", "correct loss fp32", "waiting", "bandwidth", name]
    text = report(store, names)
    assert "| device | a GPU / of theirs |" in text
    assert "| scores | 1.0e-07 | 1e-04 | ok |\n| scores | 1.0e+00 | 1e-04 | WRONG |" in text
    assert "| kept | 1.0e-07 | 1e-04 | ok |" in text
    assert "| 16 x 100 |  |  | 0.250 | 0.200 |" in text
    assert "| 16 x 100 | 12.3 | ~7 |" in text
    assert "* waiting: RuntimeError: why\n" in text
    assert "* correct loss fp32, bandwidth: not run yet: run the command again\n" in text
    assert "* tensorrt: not there" in text
    # The bandwidth comes later: 100 MiB at 1048.576 GB/s are 0.1 ms.
    store.finish("bandwidth", {"copy, GB/s": 1048.576}, 0.0)
    text = report(store, names)
    assert "| 16 x 100 | 0.200 | 0.100 | 0.250 (2.5) | 0.200 (2.0) |" in text
    assert "| assigner, times the stricter floor, 16 x 100 | <= 4 | 2.5 (auto) | reached |" in text


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

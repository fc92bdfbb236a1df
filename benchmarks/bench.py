"""Time and memory beside the reference: ``make bench``.

Contenders take turns in one process; a ratio is the median over the turns. Memory is the growth of a process's peak
over what it held before, one fresh process per figure.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.chart import draw
from benchmarks.common.inputs import STRIDES, TASKS, Setting, make_inputs
from benchmarks.common.report import RESULTS, processor, table, versions
from benchmarks.common.timing import median_ratio, take_turns
from benchmarks.contenders import contenders, implementations, settle_allocator
from benchmarks.memory import memory_row
from yolo_loss.assignment.anchor_grid import candidate_ranges
from yolo_loss.assignment.params import enlarge

SIZES = [(1, 1), (1, 10), (4, 30), (16, 30), (16, 100), (16, 300)]
SETTINGS = [
    *(Setting(task, *size) for size in SIZES for task in TASKS),
    *(Setting(task, 4, 30, image=image) for image in (320, 1280) for task in TASKS),
    *(Setting(task, 4, 30, classes=classes) for classes in (1, 365) for task in TASKS),
]
MEMORY = [
    *(Setting("assigner", 16, slots) for slots in (30, 100, 300)),
    *(Setting("loss+grad", 16, slots) for slots in (30, 300)),
]
IMPLEMENTATIONS = [Setting("assigner", *size) for size in [(1, 1), (1, 10), (4, 30), (16, 30)]]
SLOTS_OF_CURVE = [1, 25, 50, 100, 150, 200, 250, 300]
PACKAGES = ("torch", "onnxruntime", "ultralytics", "yolo-assigner")
Rows = list[dict[str, Any]]


def main() -> int:
    """Measure, write the JSON and the chart, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="turns that count, after one that does not")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the others stay as they are")
    options = parser.parse_args()
    torch.manual_seed(0)
    settle_allocator()
    some = set(options.parts) < PARTS.keys() and options.out.exists()
    kept = json.loads(options.out.read_text(encoding="utf-8")) if some else {}
    results = {**kept, "machine": machine()}
    for part in options.parts:
        items, function = PARTS[part]
        results[part] = [function(item, options.turns) for item in tqdm(items, desc=part, unit="line")]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if results.keys() >= {"times", "pairs"}:
        draw(results, options.out.with_suffix(".png"))
    print("\n\n".join(TABLES[part](results[part]) for part in PARTS if part in results))
    return 0


def measure(setting: Setting, turns: int) -> dict[str, Any]:
    """Median milliseconds of each contender, and the median ratio of the reference's time to its."""
    times = take_turns(contenders(setting), turns)
    ratios = {name: median_ratio(times["reference"], values) for name, values in times.items()}
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return {**setting._asdict(), "milliseconds": medians, "times_faster": ratios}


def compare_implementations(setting: Setting, turns: int) -> dict[str, Any]:
    """Ratio of the dense time to the sparse one, in torch and exported."""
    times = take_turns(implementations(setting), turns)
    ratios = {how: median_ratio(times[f"{how} dense"], times[f"{how} sparse"]) for how in ("torch", "onnx")}
    return {**setting._asdict(), "dense_over_sparse": ratios}


def against_pairs(slots: int, turns: int) -> dict[str, Any]:
    """Time of the assignment of 16 images over P, the number of candidate pairs.

    The least of the turns and not their median: the curve is to show the work, and on a shared machine a disturbance
    lasts as long as a call.

    Args:
        slots: M.
        turns: Turns that count.
    """
    setting = Setting("assigner", 16, slots)
    inputs = make_inputs(setting)
    boxes, valid = enlarge(inputs.truth.gt_bboxes, STRIDES[1]), inputs.truth.mask_gt.squeeze(-1).bool()
    pairs = int(candidate_ranges(inputs.predictions[2], boxes, valid, 1e-9).length.sum())
    times = take_turns(contenders(setting), turns)
    return {
        "slots": slots,
        "pairs": pairs,
        "milliseconds": {name: 1000 * min(values) for name, values in times.items()},
    }


def machine() -> dict[str, Any]:
    """Facts that the figures depend on."""
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": versions(PACKAGES),
        "date": time.strftime("%Y-%m-%d"),
    }


def times_table(rows: Rows) -> str:
    """Times faster than the reference."""
    lines = []
    for row in rows:
        faster = {name: f"{value:.1f}" for name, value in row["times_faster"].items()}
        figures = (faster["torch"], faster["compile"], faster.get("onnx", ""))
        lines.append((row["task"], f"{row['batch']} x {row['slots']}", row["image"], row["classes"], *figures))
    return table(("times faster", "B x M", "pixels", "C", "torch", "torch.compile", "ONNX"), lines)


def memory_table(rows: Rows) -> str:
    """Peak memory of a call."""
    lines = []
    for row in rows:
        sizes = [f"{row['MiB'][name]:.0f}" if name in row["MiB"] else "" for name in ("reference", "torch", "onnx")]
        lines.append((f"{row['task']} {row['batch']} x {row['slots']}", *sizes, f"{row['returned']:.0f}"))
    return table(("peak extra MiB", "reference", "torch", "ONNX", "returned"), lines)


def pairs_table(rows: Rows) -> str:
    """How well a straight line describes time over P, and the share of the longest time that does not grow with P."""
    pairs = [row["pairs"] for row in rows]
    lines = []
    for name in rows[0]["milliseconds"]:
        times = [row["milliseconds"][name] for row in rows]
        fixed = statistics.linear_regression(pairs, times).intercept / max(times)
        lines.append((name, f"{statistics.correlation(pairs, times) ** 2:.3f}", f"{fixed:.2f}"))
    return table(("time = a + b P", "R^2 of the line", "a / time of the largest P"), lines)


def implementations_table(rows: Rows) -> str:
    """Ratio of the dense time to the sparse one."""
    lines = [
        (f"{row['batch']} x {row['slots']}", *(f"{row['dense_over_sparse'][how]:.2f}" for how in ("torch", "onnx")))
        for row in rows
    ]
    return table(("dense over sparse, assigner", "torch", "ONNX"), lines)


TABLES = {"times": times_table, "pairs": pairs_table, "formulations": implementations_table, "memory": memory_table}
PARTS: dict[str, tuple[Sequence[Any], Callable[[Any, int], dict[str, Any]]]] = {
    "times": (SETTINGS, measure),
    "pairs": (SLOTS_OF_CURVE, against_pairs),
    "formulations": (IMPLEMENTATIONS, compare_implementations),
    "memory": (MEMORY, lambda setting, _: memory_row(setting)),
}

if __name__ == "__main__":
    sys.exit(main())

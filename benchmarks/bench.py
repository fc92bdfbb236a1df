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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.chart import draw
from benchmarks.contenders import TASKS, Setting
from benchmarks.memory import memory_row
from benchmarks.timing import against_pairs, compare_formulations, measure, settle_allocator

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
FORMULATIONS = [Setting("assigner", *size) for size in [(1, 1), (1, 10), (4, 30), (16, 30)]]
SLOTS_OF_CURVE = [1, 25, 50, 100, 150, 200, 250, 300]
PARTS: dict[str, tuple[Sequence[Any], Callable[[Any, int], dict[str, Any]]]] = {
    "times": (SETTINGS, measure),
    "pairs": (SLOTS_OF_CURVE, against_pairs),
    "formulations": (FORMULATIONS, compare_formulations),
    "memory": (MEMORY, lambda setting, _: memory_row(setting)),
}
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run everything, write the JSON and the chart, print the table."""
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
    print(table(results))
    return 0


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    packages = ("torch", "onnxruntime", "ultralytics", "yolo-assigner")
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {package: version(package) for package in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: what was measured."""
    tables = [TABLES[part](results[part]) for part in PARTS if part in results]
    return "\n\n".join("\n".join(lines) for lines in tables)


def times_table(rows: list[dict[str, Any]]) -> list[str]:
    """How many times faster than the reference."""
    lines = [
        "| times faster | B x M | pixels | C | torch | torch.compile | ONNX |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        faster = {name: f"{value:.1f}" for name, value in row["times_faster"].items()}
        lines.append(
            f"| {row['task']} | {row['batch']} x {row['slots']} | {row['image']} | {row['classes']} "
            f"| {faster['torch']} | {faster['compile']} | {faster.get('onnx', '')} |"
        )
    return lines


def memory_table(rows: list[dict[str, Any]]) -> list[str]:
    """Peak memory of a call."""
    lines = ["| peak extra MiB | reference | torch | ONNX | returned |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        sizes = [f"{row['MiB'][name]:.0f}" if name in row["MiB"] else "" for name in ("reference", "torch", "onnx")]
        lines.append(f"| {row['task']} {row['batch']} x {row['slots']} | {' | '.join(sizes)} | {row['returned']:.0f} |")
    return lines


def pairs_table(rows: list[dict[str, Any]]) -> list[str]:
    """How straight the line of time over P is."""
    lines = ["| time = a + b P | R^2 of the line | a / time of the largest P |", "| --- | --- | --- |"]
    return lines + [f"| {name} | {r2:.3f} | {fixed:.2f} |" for name, (r2, fixed) in straightness(rows).items()]


def formulations_table(rows: list[dict[str, Any]]) -> list[str]:
    """What the dense formulation costs."""
    lines = ["| dense over sparse, assigner | torch | ONNX |", "| --- | --- | --- |"]
    for row in rows:
        ratios = row["dense_over_sparse"]
        lines.append(f"| {row['batch']} x {row['slots']} | {ratios['torch']:.2f} | {ratios['onnx']:.2f} |")
    return lines


def straightness(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """How well a straight line describes time over P, and which part of the longest time does not grow with P."""
    pairs = [row["pairs"] for row in rows]
    lines = {}
    for name in rows[0]["milliseconds"]:
        times = [row["milliseconds"][name] for row in rows]
        fit = statistics.linear_regression(pairs, times)
        lines[name] = (statistics.correlation(pairs, times) ** 2, fit.intercept / max(times))
    return lines


TABLES = {"times": times_table, "pairs": pairs_table, "formulations": formulations_table, "memory": memory_table}

if __name__ == "__main__":
    sys.exit(main())

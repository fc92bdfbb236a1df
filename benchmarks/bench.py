"""Time and memory beside the reference: ``make bench``.

Contenders take turns in one process; a ratio is the median over the turns. Memory is the growth of a process's peak
over what it held before, one fresh process per figure.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
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
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run everything, write the JSON and the chart, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="turns that count, after one that does not")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    settle_allocator()
    results = {
        "machine": machine(),
        "times": [measure(setting, options.turns) for setting in tqdm(SETTINGS, desc="times", unit="setting")],
        "pairs": [against_pairs(slots, options.turns) for slots in tqdm(SLOTS_OF_CURVE, desc="pairs", unit="size")],
        "formulations": [compare_formulations(s, options.turns) for s in tqdm(FORMULATIONS, desc="formulations")],
        "memory": [memory_row(setting) for setting in tqdm(MEMORY, desc="memory", unit="setting")],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
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
    """Markdown: how many times faster and smaller than the reference."""
    lines = [
        "| times faster | B x M | pixels | C | torch | torch.compile | ONNX |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["times"]:
        faster = {name: f"{value:.1f}" for name, value in row["times_faster"].items()}
        lines.append(
            f"| {row['task']} | {row['batch']} x {row['slots']} | {row['image']} | {row['classes']} "
            f"| {faster['torch']} | {faster['compile']} | {faster.get('onnx', '')} |"
        )
    lines += ["", "| peak extra MiB | reference | torch | ONNX | returned |", "| --- | --- | --- | --- | --- |"]
    for row in results["memory"]:
        sizes = " | ".join(
            f"{row['MiB'][name]:.0f}" if name in row["MiB"] else "" for name in ("reference", "torch", "onnx")
        )
        lines.append(f"| {row['task']} {row['batch']} x {row['slots']} | {sizes} | {row['returned']:.0f} |")
    lines += ["", "| P, candidate pairs | torch, ns per pair | ONNX, ns per pair |", "| --- | --- | --- |"]
    for row in results["pairs"]:
        each = {name: 1e6 * value / row["pairs"] for name, value in row["milliseconds"].items()}
        lines.append(f"| {row['pairs']} | {each['torch']:.0f} | {each['onnx']:.0f} |")
    lines += ["", "| dense over sparse, assigner | torch | ONNX |", "| --- | --- | --- |"]
    for row in results["formulations"]:
        torch_ratio, onnx_ratio = (row["dense_over_sparse"][how] for how in ("torch", "onnx"))
        lines.append(f"| {row['batch']} x {row['slots']} | {torch_ratio:.2f} | {onnx_ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

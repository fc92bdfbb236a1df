"""Time and memory beside the reference: ``make bench``.

Contenders take turns in one process; a ratio is the median over the turns. Memory is the growth of a process's peak
over what it held before, one fresh process per figure.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.chart import draw
from benchmarks.contenders import Contender, Setting, contenders

SETTINGS = [
    *(Setting(task, 1, 1) for task in ("assigner", "loss", "loss+grad")),
    *(Setting(task, 4, 30) for task in ("assigner", "loss", "loss+grad")),
    *(Setting(task, 16, 30) for task in ("assigner", "loss", "loss+grad")),
    *(Setting(task, 16, 100) for task in ("assigner", "loss", "loss+grad")),
    Setting("assigner", 16, 300),
    *(Setting(task, 4, 30, image=image) for image in (320, 1280) for task in ("assigner", "loss", "loss+grad")),
    *(Setting(task, 4, 30, classes=classes) for classes in (1, 365) for task in ("assigner", "loss", "loss+grad")),
]
MEMORY = [Setting("assigner", 16, 100), Setting("assigner", 16, 300), Setting("loss+grad", 16, 30)]
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run everything, write the JSON and the chart, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="turns that count, after one that does not")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json")
    parser.add_argument("--memory-of", nargs=2, metavar=("SETTING", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(peak_growth(Setting(*json.loads(options.memory_of[0])), options.memory_of[1]))
        return 0
    torch.manual_seed(0)
    rows = [measure(setting, options.turns) for setting in tqdm(SETTINGS, desc="times", unit="setting")]
    memory = [memory_row(setting) for setting in tqdm(MEMORY, desc="memory", unit="setting")]
    results = {"machine": machine(), "times": rows, "memory": memory}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, options.out.with_suffix(".png"))
    print(table(results))
    return 0


def measure(setting: Setting, turns: int) -> dict[str, Any]:
    """Medians in milliseconds, and the median of the reference's time over each contender's, turn by turn."""
    runs = contenders(setting)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            seconds = clock(run)
            if turn:
                times[name].append(seconds)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times["reference"], times[name], strict=True)) for name in runs
    }
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return {**setting._asdict(), "milliseconds": medians, "times_faster": ratios}


def clock(run: Contender) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def memory_row(setting: Setting) -> dict[str, Any]:
    """Peak growth in MiB of each contender, in processes of their own."""
    names = [name for name in ("reference", "torch", "onnx") if setting.task != "loss+grad" or name != "onnx"]
    growth = {}
    for name in names:
        words = [sys.executable, "-m", "benchmarks.bench", "--memory-of", json.dumps(setting), name]
        answer = subprocess.run(words, capture_output=True, text=True, check=True)
        growth[name] = float(answer.stdout.split()[-1])
    return {**setting._asdict(), "MiB": growth}


def peak_growth(setting: Setting, name: str) -> float:
    """How far one call raises the process's peak over what it held, MiB. Linux only."""
    # A call on a small input first: what is loaded and compiled on first use is not the call's memory.
    contenders(setting._replace(batch=1, slots=1, image=64))[name]()
    run = contenders(setting)[name]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


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
        "| what | B x M | pixels | C | reference ms | torch | ONNX |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["times"]:
        faster = {name: f"{value:.1f} x" for name, value in row["times_faster"].items()}
        lines.append(
            f"| {row['task']} | {row['batch']} x {row['slots']} | {row['image']} | {row['classes']} "
            f"| {faster['torch']} | {faster.get('onnx', '')} |"
        )
    lines += ["", "| peak extra memory | reference MiB | torch MiB | ONNX MiB |", "| --- | --- | --- | --- |"]
    for row in results["memory"]:
        sizes = " | ".join(
            f"{row['MiB'][name]:.0f}" if name in row["MiB"] else "" for name in ("reference", "torch", "onnx")
        )
        lines.append(f"| {row['task']} {row['batch']} x {row['slots']} | {sizes} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

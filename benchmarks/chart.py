"""The chart of ``benchmarks.bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"torch": "#c4502e", "compile": "#e0a030", "onnx": "#2e6fc4"}
LABELS = {"torch": "ours, torch", "compile": "ours, torch.compile", "onnx": "ours, ONNX Runtime"}
TITLES = {"assigner": "assignment", "loss": "loss, forward", "loss+grad": "loss, forward and backward"}
UNIT_SLOTS = 100


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw bars of times faster than the reference, one panel per task, and curves of time over candidate pairs.

    Args:
        results: Results of ``benchmarks.bench``.
        path: PNG file to write.
    """
    figure = Figure(figsize=(14, 8.4), layout="constrained")
    (first, second), (third, fourth) = figure.subplots(2, 2)
    for axes, (task, title) in zip((first, second, third), TITLES.items(), strict=True):
        _bars(axes, [row for row in results["times"] if row["task"] == task])
        axes.set_title(title)
        axes.set_ylabel("times faster than the reference")
    first.legend(frameon=False)
    _curve(fourth, results["pairs"])
    machine = results["machine"]
    figure.suptitle(
        f"ultralytics {machine['versions']['ultralytics']} = 1, {machine['threads']} threads, {machine['cpu']}, "
        f"torch {machine['versions']['torch']}, onnxruntime {machine['versions']['onnxruntime']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=90)


def _bars(axes: Axes, rows: list[dict[str, Any]]) -> None:
    names = [name for name in COLOURS if name in rows[0]["times_faster"]]
    width = 0.84 / len(names)
    for index, name in enumerate(names):
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(rows))]
        values = [row["times_faster"][name] for row in rows]
        bars = axes.bar(places, values, width, color=COLOURS[name], label=LABELS[name])
        axes.bar_label(bars, fmt="%.1f", fontsize=6)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [_label(row) for row in rows], rotation=40, ha="right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _curve(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw time over P at constant A, in units of the reference's time at 16 x 100."""
    unit = next(row["milliseconds"]["reference"] for row in rows if row["slots"] == UNIT_SLOTS)
    pairs = [row["pairs"] / 1e6 for row in rows]
    for name, colour in COLOURS.items():
        axes.plot(pairs, [row["milliseconds"][name] / unit for row in rows], "o-", color=colour, label=LABELS[name])
    axes.set_title("assignment, 16 images of 640 pixels: time over candidate pairs")
    axes.set_xlabel("P, million pairs of a ground truth and an anchor inside it")
    axes.set_ylabel(f"time (reference, 16 x {UNIT_SLOTS} = 1)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: dict[str, Any]) -> str:
    extra = f", {row['image']} px" if row["image"] != 640 else ""
    extra += f", C {row['classes']}" if row["classes"] != 80 else ""
    return f"{row['batch']} x {row['slots']}{extra}"

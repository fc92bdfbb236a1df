"""The benchmark as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"torch": "#c4502e", "onnx": "#2e6fc4"}
TITLES = {"assigner": "assignment", "loss": "loss, forward", "loss+grad": "loss, forward and backward"}


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of how many times faster than the reference, one panel per task.

    Args:
        results: What ``benchmarks.bench`` writes.
        path: PNG file to write.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, len(TITLES))
    for axes, (task, title) in zip(panels, TITLES.items(), strict=True):
        _panel(axes, [row for row in results["times"] if row["task"] == task])
        axes.set_title(title)
    panels[0].set_ylabel("times faster than the reference")
    panels[0].legend(frameon=False)
    machine = results["machine"]
    figure.suptitle(
        f"ultralytics {machine['versions']['ultralytics']} = 1, {machine['threads']} threads, {machine['cpu']}, "
        f"torch {machine['versions']['torch']}, onnxruntime {machine['versions']['onnxruntime']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=100)


def _panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    names = [name for name in COLOURS if name in rows[0]["times_faster"]]
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(rows))]
        values = [row["times_faster"][name] for row in rows]
        bars = axes.bar(places, values, width, color=COLOURS[name], label=f"ours, {name}")
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [_label(row) for row in rows], rotation=60, ha="right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: dict[str, Any]) -> str:
    extra = f", {row['image']} px" if row["image"] != 640 else ""
    extra += f", C {row['classes']}" if row["classes"] != 80 else ""
    return f"{row['batch']} x {row['slots']}{extra}"

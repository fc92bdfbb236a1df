"""The goals of the GPU benchmark, and whether they are reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.gpu.contenders import REFERENCE

# Contenders that are given padded ground truth; the reference pads the ragged batch within its time.
PADDED = ("whole", "onnxruntime", "tensorrt", "tensorrt-rtx")
Row = dict[str, Any]


class Goal(NamedTuple):
    """One goal.

    Attributes:
        text: Name of the figure.
        task: Task of the benchmark.
        batch: B.
        slots: M.
        limit: Figure to reach.
        at_least: Whether the figure must be at least the limit; otherwise at most.
        figure: Computes the figure of a row, with the contender's name.
    """

    text: str
    task: str
    batch: int
    slots: int
    limit: float
    at_least: bool
    figure: Callable[[Row], tuple[float, str]]


class MissingFigureError(ValueError):
    """A figure was not measured; the text names it."""


def right_contenders(checks: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """Names of the contenders that were compared and are right, by task and precision.

    Args:
        checks: Checks of all contenders.
    """
    compared: dict[tuple[str, str], set[str]] = {}
    wrong: set[tuple[str, str, str]] = set()
    for check in checks:
        task, precision, name = (str(check.get(field, "")) for field in ("task", "precision", "contender"))
        if "figure" in check:
            compared.setdefault((task, precision), set()).add(name)
        if not check["ok"]:
            wrong.add((task, precision, name))
    return {key: {name for name in names if (*key, name) not in wrong} for key, names in compared.items()}


def outcome(goal: Goal, rows: Sequence[Row], right: Mapping[tuple[str, str], set[str]]) -> tuple[str, str]:
    """The figure as text, and whether the goal is reached.

    Args:
        goal: The goal.
        rows: Rows of all settings and precisions.
        right: Result of :func:`right_contenders`; other contenders of ours do not count.

    Returns:
        The figure with the contender's name or what is missing, and ``reached``, ``missed`` or ``unknown``.
    """
    key = (goal.task, goal.batch, goal.slots, "fp32")
    found = [row for row in rows if (row["task"], row["batch"], row["slots"], row["precision"]) == key]
    if not found:
        return "not measured", "unknown"
    try:
        figure, name = goal.figure(_counting(found[0], right))
    except MissingFigureError as error:
        return f"not measured: {error}", "unknown"
    reached = figure >= goal.limit if goal.at_least else figure <= goal.limit
    return f"{figure:.1f} ({name})", "reached" if reached else "missed"


def _counting(row: Row, right: Mapping[tuple[str, str], set[str]]) -> Row:
    names = right.get((row["task"], row["precision"]), set()) | {REFERENCE}
    return {**row, "contenders": {name: entry for name, entry in row["contenders"].items() if name in names}}


def called_alike(row: Row) -> Row:
    """Keep of a loss only the contenders that pad the ragged batch, as the reference does within its time."""
    if row["task"] == "assigner":
        return row
    alike = {name: entry for name, entry in row["contenders"].items() if not set(name.split()) & set(PADDED)}
    return {**row, "contenders": alike}


def times_faster(row: Row) -> tuple[float, str]:
    """Ratio of the reference's time to the best of ours that takes the same inputs."""
    name, best = best_of_ours(called_alike(row), "ms")
    return _of_reference(row, "ms") / best, name


def times_less_memory(row: Row) -> tuple[float, str]:
    """Ratio of the reference's peak to the least of ours, of those that use torch's allocator."""
    name, best = best_of_ours(called_alike(row), "peak_mib")
    return _of_reference(row, "peak_mib") / best, name


def times_the_floor(row: Row) -> tuple[float, str]:
    """Ratio of the best time of ours to the stricter floor."""
    if row.get("needed_ms") is None:
        raise MissingFigureError("the bandwidth of copies")
    name, best = best_of_ours(row, "ms")
    return best / row["needed_ms"], name


def best_of_ours(row: Row, field: str) -> tuple[str, float]:
    """Name and figure of our best contender.

    Raises:
        MissingFigureError: No contender of ours has the figure.
    """
    found = {
        name: entry[field]
        for name, entry in row["contenders"].items()
        if name != REFERENCE and entry.get(field) is not None
    }
    if not found:
        raise MissingFigureError(f"{field} of one of ours that was compared and is right")
    name = min(found, key=lambda name: found[name])
    return name, found[name]


def _of_reference(row: Row, field: str) -> float:
    entry = row["contenders"].get(REFERENCE, {})
    if entry.get(field) is None:
        raise MissingFigureError(f"{field} of the reference ({entry.get('reason', 'not run')})")
    return float(entry[field])


GOALS = (
    Goal("assigner, times faster than the reference", "assigner", 16, 100, 10.0, True, times_faster),
    Goal("loss and gradients, times faster than the reference", "loss+grad", 16, 30, 5.0, True, times_faster),
    Goal("assigner, times less memory than the reference", "assigner", 16, 300, 10.0, True, times_less_memory),
    Goal("loss and gradients, times less memory", "loss+grad", 16, 300, 10.0, True, times_less_memory),
    Goal("assigner, times the stricter floor", "assigner", 16, 100, 4.0, False, times_the_floor),
    Goal("loss and gradients, times the stricter floor", "loss+grad", 16, 30, 4.0, False, times_the_floor),
)

"""What was to be reached, and whether it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

REFERENCE = "reference"
Row = dict[str, Any]


class Goal(NamedTuple):
    """One line.

    Attributes:
        text: What is compared.
        task: Of the benchmark.
        batch: B.
        slots: M.
        limit: The figure to reach.
        at_least: It is reached from there on; else up to there.
        figure: Of a row: the figure with the contender's name.
    """

    text: str
    task: str
    batch: int
    slots: int
    limit: float
    at_least: bool
    figure: Callable[[Row], tuple[float, str]]


class MissingFigureError(ValueError):
    """Something was not measured; the text says what."""


def outcome(goal: Goal, rows: Sequence[Row]) -> tuple[str, str]:
    """The figure in words, and whether the goal is reached.

    Args:
        goal: The goal.
        rows: Of all settings, float32 and half.

    Returns:
        Both texts; a goal of which a part was not measured has no figure.
    """
    wanted = (goal.task, goal.batch, goal.slots, "fp32")
    found = [row for row in rows if (row["task"], row["batch"], row["slots"], row["precision"]) == wanted]
    if not found:
        return "not measured", "unknown"
    try:
        figure, name = goal.figure(found[0])
    except MissingFigureError as error:
        return f"not measured: {error}", "unknown"
    reached = figure >= goal.limit if goal.at_least else figure <= goal.limit
    return f"{figure:.1f} ({name})", "reached" if reached else "missed"


def times_faster(row: Row) -> tuple[float, str]:
    """The reference's time over that of the best of ours."""
    name, best = best_of_ours(row, "ms")
    return _of_reference(row, "ms") / best, name


def times_less_memory(row: Row) -> tuple[float, str]:
    """The reference's peak over that of ours which takes least, of those measured by the same allocator."""
    name, best = best_of_ours(row, "peak_mib")
    return _of_reference(row, "peak_mib") / best, name


def times_the_floor(row: Row) -> tuple[float, str]:
    """The time of the best of ours over the floor."""
    if row.get("floor_ms") is None:
        raise MissingFigureError("the bandwidth of copies")
    name, best = best_of_ours(row, "ms")
    return best / row["floor_ms"], name


def best_of_ours(row: Row, field: str) -> tuple[str, float]:
    """Name and figure of the best contender but for the reference.

    Raises:
        MissingFigureError: There is none.
    """
    found = {
        name: entry[field]
        for name, entry in row["contenders"].items()
        if name != REFERENCE and entry.get(field) is not None
    }
    if not found:
        raise MissingFigureError(f"{field} of ours")
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
    Goal("assigner, times the floor", "assigner", 16, 100, 4.0, False, times_the_floor),
    Goal("loss and gradients, times the floor", "loss+grad", 16, 30, 4.0, False, times_the_floor),
)

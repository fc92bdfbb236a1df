"""Results of the GPU benchmark as tables in Markdown, and its goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.common.inputs import TASKS
from benchmarks.common.report import table
from benchmarks.gpu.contenders import EXPORTED, REFERENCE
from benchmarks.gpu.results import Entry, Results

Entries = Mapping[str, Entry]
TITLES = {"assigner": "Assignment", "loss": "Loss, forward", "loss+grad": "Loss, forward and backward"}
TIMES_NOTE = (
    "Median milliseconds; in parentheses times the floor, the time in which the bytes that must move are copied."
)
MEMORY_NOTE = "Peak MiB of a call above its inputs and, in parentheses, above its outputs too."
GOALS_NOTE = (
    "Only contenders count that were compared in that task and are right. Exported models get padded ground truth."
)


class Goal(NamedTuple):
    """One goal, for 16 images in float32.

    Attributes:
        figure: What is judged; must be at least the limit if it is ``FASTER``, else at most.
        task: Task of the benchmark.
        slots: M.
        limit: Figure to reach.
        graph: Whether CUDA graphs are meant; else what is called from Python in each step.
    """

    figure: str
    task: str
    slots: int
    limit: float
    graph: bool = False


FASTER, FLOOR, EXTRA, TIME = "times faster than the reference", "times the floor", "MiB above inputs and outputs", "ms"
GOALS = (
    Goal(FASTER, "assigner", 100, 10.0),
    Goal(FASTER, "loss+grad", 30, 5.0),
    Goal(TIME, "loss+grad", 30, 0.5),
    Goal(FLOOR, "assigner", 100, 2.5, graph=True),
    Goal(FLOOR, "loss+grad", 30, 2.5, graph=True),
    Goal(EXTRA, "assigner", 300, 32.0),
    Goal(EXTRA, "loss+grad", 300, 32.0),
)


def report(results: Results, names: Sequence[str]) -> str:
    """All tables of the present code, device and packages, and the goals under the earlier ones.

    Args:
        results: The results.
        names: Names of the units that were to run.
    """
    entries = results.entries
    missing = [name for name in names if name not in entries]
    sections = [
        "# On one GPU",
        facts_table(entries),
        f"## Goals\n\n{goals_table(entries)}\n\n{GOALS_NOTE}",
        *(
            f"## {TITLES[task]}, {precision}\n\n{times_table(entries, rows)}"
            for task in TASKS
            for precision in ("fp32", "fp16")
            if (rows := rows_of(entries, task, precision))
        ),
        f"{TIMES_NOTE} {MEMORY_NOTE}",
        f"## Compared\n\n{checks_table(entries)}",
        f"## What is missing\n\n{missing_list(entries, missing)}",
    ]
    for earlier in reversed(results.others):
        sections.append(f"## Measured earlier\n\n{facts_table(earlier)}\n\n{goals_table(earlier)}")
    return "\n\n".join(sections) + "\n"


def facts_table(entries: Entries) -> str:
    """Facts that the figures depend on."""
    facts = {**entries.get("environment", {}), "copy, read and written, GB/s": speed_of(entries) or "not measured"}
    facts.pop("contender", None)
    return table(("what", "value"), facts.items())


def speed_of(entries: Entries) -> float:
    """Gigabytes per second of a copy, read and written bytes together; 0 if it was not measured."""
    return float(entries.get("bandwidth", {}).get("GB/s", 0.0))


def floor_ms(entry: Entry, speed: float) -> float:
    """Milliseconds in which the bytes that must move are copied."""
    return float(entry["floor_mib"] * 2**20 / speed / 1e6)


def rows_of(entries: Entries, task: str, precision: str) -> dict[str, dict[str, Entry]]:
    """Measured entries by size and contender."""
    rows: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        if "ms" in entry and (entry["task"], entry["precision"]) == (task, precision) and name.startswith("time "):
            rows.setdefault(f"{entry['batch']} x {entry['slots']}", {})[entry["contender"]] = entry
    return rows


def times_table(entries: Entries, rows: Mapping[str, Mapping[str, Entry]]) -> str:
    """Times of all contenders, and the memory of those that use torch's allocator."""
    speed = speed_of(entries)
    names = list({name: None for row in rows.values() for name in row})
    counted = [name for name in names if any("returned_mib" in row.get(name, {}) for row in rows.values())]
    lines = []
    for size, row in rows.items():
        floor = floor_ms(next(iter(row.values())), speed) if speed else 0.0
        times = (f"{row[name]['ms']:.3f}" + (f" ({row[name]['ms'] / floor:.1f})" if floor else "") for name in row)
        cells = dict(zip(row, times, strict=True))
        memory = (_memory(row.get(name, {})) for name in counted)
        lines.append((size, f"{floor:.3f}", *(cells.get(name, "") for name in names), *memory))
    return table(("B x M", "floor, ms", *names, *(f"MiB, {name}" for name in counted)), lines)


def _memory(entry: Entry) -> str:
    if entry.get("peak_mib") is None:
        return ""
    return f"{entry['peak_mib']:.0f} ({entry['peak_mib'] - entry['returned_mib']:.0f})"


def checks_table(entries: Entries) -> str:
    """Comparisons that are beyond their limits, and the number of all."""
    checks = [check for entry in entries.values() for check in entry.get("checks", [])]
    wrong = [(one["what"], f"{one['figure']:.1e}", f"{one['limit']:.0e}") for one in checks if not one["ok"]]
    return f"{len(checks)} comparisons, {len(wrong)} wrong.\n\n{table(('wrong', 'difference', 'limit'), wrong)}"


def goals_table(entries: Entries) -> str:
    """Goals and figures."""
    lines = []
    for goal in GOALS:
        title = f"{TITLES[goal.task]}, 16 x {goal.slots}{', CUDA graph' if goal.graph else ''}: {goal.figure}"
        limit = f"{'>=' if goal.figure == FASTER else '<='} {goal.limit:g}"
        lines.append((title, limit, *outcome(goal, entries)))
    return table(("on one GPU, medians, fp32", "goal", "figure", ""), lines)


def outcome(goal: Goal, entries: Entries) -> tuple[str, str]:
    """The best figure as text with its contender, or what is missing; and ``reached``, ``missed`` or ``unknown``."""
    row = rows_of(entries, goal.task, "fp32").get(f"16 x {goal.slots}", {})
    figures = {
        name: figure
        for name, entry in row.items()
        if ("graph" in name.split()) == goal.graph and name not in EXPORTED and is_right(entries, goal.task, name)
        if (figure := figure_of(goal.figure, entry, row.get(REFERENCE, {}), speed_of(entries))) is not None
    }
    if not figures:
        return "not measured, or of none that was compared and is right", "unknown"
    more = goal.figure == FASTER
    name = (max if more else min)(figures, key=lambda name: figures[name])
    reached = figures[name] >= goal.limit if more else figures[name] <= goal.limit
    return f"{figures[name]:.2f} ({name})", "reached" if reached else "missed"


def figure_of(figure: str, entry: Entry, reference: Entry, speed: float) -> float | None:
    """A contender's figure, or None where something was not measured."""
    if figure == EXTRA:
        return None if entry.get("peak_mib") is None else float(entry["peak_mib"] - entry["returned_mib"])
    if figure == FASTER:
        return float(reference["ms"] / entry["ms"]) if reference else None
    if figure == FLOOR:
        return float(entry["ms"] / floor_ms(entry, speed)) if speed else None
    return float(entry["ms"])


def is_right(entries: Entries, task: str, name: str) -> bool:
    """Whether a contender of ours was compared in a task and is right."""
    checks: list[dict[str, Any]] = entries.get(f"compare {task} fp32, {name}", {}).get("checks", [])
    return bool(checks) and all(check["ok"] for check in checks)


def missing_list(entries: Entries, missing: Sequence[str]) -> str:
    """Units without a result, or their contenders, grouped by reason."""
    reasons = {"not run yet: run the command again": dict.fromkeys(missing)} if missing else {}
    for name, entry in entries.items():
        if "reason" in entry:
            reasons.setdefault(entry["reason"], {})[entry["contender"] or name] = None
    return "\n".join(f"* {'; '.join(names)}: {reason}" for reason, names in reasons.items()) or "Nothing."

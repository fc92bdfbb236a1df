"""Results of the GPU benchmark as tables in Markdown, and its goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.common.report import Goal, goals_table, table
from benchmarks.gpu.contenders import EXPORTED, REFERENCE
from benchmarks.gpu.measure import EXTRA, MS, PEAK
from benchmarks.gpu.results import Entry, Results

Entries = Mapping[str, Entry]
FASTER, FLOOR = "times faster than the reference", "times the floor"
DIGITS = {MS: ".3f", FASTER: ".2f", FLOOR: ".1f", PEAK: ".0f", EXTRA: ".0f"}
UNKNOWN = "Not measured, or of none that was compared in that task and is right"


class Target(NamedTuple):
    """A goal, for 16 images in float32.

    Attributes:
        task: Task of the benchmark.
        slots: M.
        figure: What is judged; must be at least the limit if it is ``FASTER``, else at most. The floor is that of
            CUDA graphs, all else is judged as it is called from Python in each step.
        limit: Figure to reach.
    """

    task: str
    slots: int
    figure: str
    limit: float

    @property
    def title(self) -> str:
        """The goal in words."""
        return f"{self.task} 16 x {self.slots}{', CUDA graph' * (self.figure == FLOOR)}: {self.figure}"


TARGETS = (
    Target("assigner", 100, FASTER, 10.0),
    Target("loss+grad", 30, FASTER, 5.0),
    Target("loss+grad", 30, MS, 0.5),
    Target("assigner", 100, FLOOR, 2.5),
    Target("loss+grad", 30, FLOOR, 2.5),
    Target("assigner", 300, EXTRA, 32.0),
    Target("loss+grad", 300, EXTRA, 32.0),
)


def report(results: Results, names: Sequence[str]) -> str:
    """All tables of the present code, device and packages, where these units were to run, and the goals before."""
    entries = results.entries
    parts = [
        f"# On one GPU\n\n{summary(entries)}",
        f"## Figures\n\n{figures_table(entries)}\n\nWhat they mean: docs/gpu.md.",
        f"## Compared\n\n{checks_table(entries)}",
        f"## What is missing\n\n{missing_list(entries, names)}",
        *(f"## Measured earlier\n\n{summary(earlier)}" for earlier in reversed(results.others.values())),
    ]
    return "\n\n".join(parts) + "\n"


def summary(entries: Entries) -> str:
    """Facts that the figures depend on, and the goals."""
    facts = {**entries.get("environment", {}), "copy, read and written, GB/s": speed_of(entries) or "not measured"}
    facts.pop("contender", None)
    found = {target: outcome(target, entries) for target in TARGETS}
    unknown = "; ".join(target.title for target, goal in found.items() if goal is None) or "nothing"
    goals = goals_table([goal for goal in found.values() if goal], ".2f")
    return f"{table(('what', 'value'), facts.items())}\n\n{goals}\n\n{UNKNOWN}: {unknown}."


def speed_of(entries: Entries) -> float:
    """Gigabytes per second of a copy, read and written bytes together; 0 if it was not measured."""
    return float(entries.get("bandwidth", {}).get("GB/s", 0.0))


def outcome(target: Target, entries: Entries) -> Goal | None:
    """The best figure of those that count for a goal, or None if there is none.

    Contenders count that were compared in that task and are right, but not exported models: they get padded ground
    truth.
    """
    more = target.figure == FASTER
    found = {}
    for entry in timed(entries, task=target.task, size=f"16 x {target.slots}", precision="fp32"):
        name, figures = entry["contender"], figures_of(entry, entries)
        counts = ("graph" in name.split()) == (target.figure == FLOOR) and name not in (*EXPORTED, REFERENCE)
        if counts and target.figure in figures and is_right(entries, target.task, name):
            found[name] = figures[target.figure]
    if not found:
        return None
    name = (max if more else min)(found, key=lambda name: found[name])
    return Goal(f"{target.title} ({name})", found[name], target.limit, at_least=more)


def timed(entries: Entries, **place: str) -> list[Entry]:
    """Entries with a time, by default all, or those of some task, size, precision or contender."""
    return [entry for entry in entries.values() if MS in entry and place.items() <= entry.items()]


def figures_of(entry: Entry, entries: Entries) -> dict[str, Any]:
    """A timed entry with the figures that follow from others."""
    found, place = dict(entry), {name: entry[name] for name in ("task", "size", "precision")}
    for reference in timed(entries, contender=REFERENCE, **place):
        found[FASTER] = reference[MS] / entry[MS]
    if speed := speed_of(entries):
        found[FLOOR] = entry[MS] * speed * 1e6 / (entry["floor, MiB"] * 2**20)
    return found


def is_right(entries: Entries, task: str, name: str) -> bool:
    """Whether a contender of ours was compared in a task and is right."""
    checks: list[dict[str, Any]] = entries.get(f"compare {task} fp32, {name}", {}).get("checks", [])
    return bool(checks) and all(check["ok"] for check in checks)


def figures_table(entries: Entries) -> str:
    """Figures of all contenders, by task, precision and size."""
    names = ("task", "precision", "size", "contender")
    lines = []
    for entry in sorted(timed(entries), key=lambda entry: [entry[name] for name in names[:-1]]):
        figures = figures_of(entry, entries)
        cells = (format(figures[name], digits) if name in figures else "" for name, digits in DIGITS.items())
        lines.append((*(entry[name] for name in names), *cells))
    return table((*names, *DIGITS), lines)


def checks_table(entries: Entries) -> str:
    """Comparisons that are beyond their limits, and the number of all."""
    checks = [(name, check) for name, entry in entries.items() for check in entry.get("checks", [])]
    wrong = [
        (f"{name}: {check['what']}", f"{check['figure']:.1e}", f"{check['limit']:.0e}")
        for name, check in checks
        if not check["ok"]
    ]
    return f"{len(checks)} comparisons, {len(wrong)} wrong.\n\n{table(('wrong', 'difference', 'limit'), wrong)}"


def missing_list(entries: Entries, names: Sequence[str]) -> str:
    """Units without a result, or their contenders, grouped by reason."""
    missing = [name for name in names if name not in entries]
    reasons = {"not run yet: run the command again": dict.fromkeys(missing)} if missing else {}
    for name, entry in entries.items():
        if "reason" in entry:
            reasons.setdefault(entry["reason"], {})[entry["contender"] or name] = None
    return "\n".join(f"* {'; '.join(names)}: {reason}" for reason, names in reasons.items()) or "Nothing."

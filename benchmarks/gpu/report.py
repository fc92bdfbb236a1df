"""Results of the GPU benchmark as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common.report import table
from benchmarks.contenders import TASKS
from benchmarks.gpu.floor import floor_ms
from benchmarks.gpu.goals import GOALS, Row, outcome, right_contenders
from benchmarks.gpu.parts import CORRECT, TIMES
from benchmarks.gpu.store import Store

TIMES_NOTE = """\
Floors count the bytes that must move: the first all inputs and outputs, the stricter one what the result depends on (no
scores of classes that no box around the anchor has, no `target_gt_idx`). In parentheses: times the stricter floor.
Engines of TensorRT write all outputs of the model, also those that onnxruntime is not asked for."""
MEMORY_NOTE = """\
An engine of TensorRT holds the memory of its profile's largest size, whatever the size that is run."""
GOALS_NOTE = """\
Only contenders that were compared in that task and precision and are right count. The reference's loss pads the ragged
batch within its time, so it is compared only with those of ours that are given the ragged batch too."""
TITLES = {
    "assigner": "Assignment",
    "loss": "Loss, forward",
    "loss+grad": "Loss, forward and backward",
}


def report(store: Store, names: Sequence[str]) -> str:
    """All tables.

    Args:
        store: Results.
        names: Names of the parts, in their order.
    """
    bandwidth = store.result("bandwidth") or {}
    checks = checks_of(store, names)
    rows = [with_floors(row, bandwidth) for row in rows_of(store, names)]
    sections = [
        "# On one GPU",
        environment_table(store.result("environment") or {}, bandwidth),
        "## Correct\n\n" + checks_table(checks),
        "## Waiting for the GPU\n\n" + waiting_table(store.result("waiting") or []),
        *(
            f"## {TITLES[task]}, {precision}\n\n{times_table(found)}\n\n{TIMES_NOTE}\n\n{memory_table(found)}"
            f"\n\n{MEMORY_NOTE}"
            for task in TASKS
            for precision in ("fp32", "fp16")
            if (found := [row for row in rows if (row["task"], row["precision"]) == (task, precision)])
        ),
        "## Goals\n\n" + goals_table(rows, checks) + "\n\n" + GOALS_NOTE,
        "## What is missing\n\n" + missing_list(store, names, rows),
    ]
    return "\n\n".join(sections) + "\n"


def checks_of(store: Store, names: Sequence[str]) -> list[dict[str, Any]]:
    """All comparisons that were made, including those of unfinished parts."""
    found: list[dict[str, Any]] = []
    for name in (name for name in names if name.startswith(CORRECT)):
        if store.is_done(name):
            found += store.result(name)
            continue
        for contender, checks in store.entries(name).items():
            task, _, precision = name.removeprefix(CORRECT).partition(" ")
            found += [{"task": task, "precision": precision, "contender": contender, **check} for check in checks]
    return found


def rows_of(store: Store, names: Sequence[str]) -> list[Row]:
    """Rows of all finished parts that measure times."""
    return [store.result(name) for name in names if name.startswith(TIMES) and store.is_done(name)]


def with_floors(row: Row, bandwidth: dict[str, float]) -> Row:
    """Add both floors in milliseconds where the bandwidth is known; it may have been measured after the row."""
    for speed in bandwidth.values():
        row = {**row, **{f"{name}_ms": floor_ms(row[f"{name}_mib"], speed) for name in ("floor", "needed")}}
    return row


def environment_table(environment: dict[str, Any], bandwidth: dict[str, Any]) -> str:
    """Facts that the figures depend on."""
    facts = {**environment, **bandwidth}
    return table(("what", "value"), [(name, str(value)) for name, value in facts.items()])


def checks_table(checks: Sequence[dict[str, Any]]) -> str:
    """Comparisons with their limits."""
    return table(
        ("compared", "difference", "limit", ""),
        [
            (check["what"], f"{check['figure']:.1e}", f"{check['limit']:.0e}", "ok" if check["ok"] else "WRONG")
            if "figure" in check
            else (check["what"], "", "", check["reason"])
            for check in checks
        ],
    )


def waiting_table(checks: Sequence[dict[str, Any]]) -> str:
    """Number of times that each call makes the host wait."""
    return table(
        ("part", "waits", ""),
        [
            (check["what"], str(check.get("waits", check.get("reason"))), "" if check["ok"] else "WRONG")
            for check in checks
        ],
    )


def times_table(rows: Sequence[Row]) -> str:
    """Medians in milliseconds, and their ratios to the stricter floor."""
    names = _names(rows)
    return table(
        ("ms (times the stricter floor)", "floor", "stricter", *names),
        [(_size(row), *_floors(row), *(_time(row, name) for name in names)) for row in rows],
    )


def memory_table(rows: Sequence[Row]) -> str:
    """Peak memory beyond the inputs, results included; after ``~``, memory that the device lacks after the call."""
    names = _names(rows)
    lines = [(_size(row), *(_memory(row["contenders"].get(name, {})) for name in names)) for row in rows]
    return table(("peak extra MiB", *names), lines)


def goals_table(rows: Sequence[Row], checks: Sequence[dict[str, Any]]) -> str:
    """Goals and figures."""
    lines, right = [], right_contenders(checks)
    for goal in GOALS:
        figure, reached = outcome(goal, rows, right)
        limit = f"{'>=' if goal.at_least else '<='} {goal.limit:g}"
        lines.append((f"{goal.text}, {goal.batch} x {goal.slots}", limit, figure, reached))
    return table(("on one GPU, medians, fp32", "goal", "figure", ""), lines)


def missing_list(store: Store, names: Sequence[str], rows: Sequence[Row]) -> str:
    """Parts and contenders without a result, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        if not store.is_done(name):
            reasons.setdefault(store.reason(name) or "not run yet: run the command again", []).append(name)
    for row in rows:
        for name, entry in row["contenders"].items():
            if "reason" in entry:
                where = reasons.setdefault(entry["reason"], [])
                where += [name] if name not in where else []
    return "\n".join(f"* {', '.join(where)}: {reason}" for reason, where in reasons.items()) or "Nothing."


def _names(rows: Sequence[Row]) -> list[str]:
    """Contenders with a time in at least one row, in order of appearance."""
    every = {name: None for row in rows for name in row["contenders"]}
    return [name for name in every if any(row["contenders"].get(name, {}).get("ms") is not None for row in rows)]


def _size(row: Row) -> str:
    return f"{row['batch']} x {row['slots']}"


def _floors(row: Row) -> list[str]:
    return [_number(row.get(f"{name}_ms"), 3) for name in ("floor", "needed")]


def _time(row: Row, name: str) -> str:
    milliseconds, floor = row["contenders"].get(name, {}).get("ms"), row.get("needed_ms")
    if milliseconds is None:
        return ""
    return f"{milliseconds:.3f}" + (f" ({milliseconds / floor:.1f})" if floor else "")


def _memory(entry: dict[str, Any]) -> str:
    if entry.get("peak_mib") is not None:
        return _number(entry["peak_mib"], 1)
    return "" if entry.get("device_mib") is None else f"~{entry['device_mib']:.0f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"

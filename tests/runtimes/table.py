"""Results as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.runtimes.batches import GROUPS
from tests.runtimes.environments import Runtime

BEGIN, END = "<!-- written by `make test-runtimes TABLE=docs/runtimes.md` -->", "<!-- end of what is written -->"


class Outcome(NamedTuple):
    """One batch in one model in one runtime.

    Attributes:
        runtime: The runtime.
        kind: Of the model.
        implementation: Of the model.
        group: Of the batch.
        batch: Its name.
        faults: What was wrong; empty when nothing was.
    """

    runtime: Runtime
    kind: str
    implementation: str
    group: str
    batch: str
    faults: tuple[str, ...]


def write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Replace the part of a page between the two markers.

    Raises:
        ValueError: The page has no markers.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} has no lines {BEGIN!r} and {END!r}; add them where the table goes")
    path.write_text(f"{before}{BEGIN}\n\n{_table(outcomes)}\n{END}{after}", encoding="utf-8")


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        f"| runtime | version | kind | {' | '.join(GROUPS)} |",
        f"| --- | --- | --- |{' --- |' * len(GROUPS)}",
    ]
    rows = dict.fromkeys((outcome.runtime, outcome.kind) for outcome in outcomes)
    for runtime, kind in rows:
        here = [outcome for outcome in outcomes if (outcome.runtime, outcome.kind) == (runtime, kind)]
        cells = [_cell([outcome for outcome in here if outcome.group == group]) for group in GROUPS]
        lines.append(f"| {runtime.package} | {runtime.version} | `{kind}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_faults(outcomes)])


def _cell(outcomes: Sequence[Outcome]) -> str:
    right = sum(not outcome.faults for outcome in outcomes)
    return f"{right} of {len(outcomes)}" if outcomes else ""


def _faults(outcomes: Sequence[Outcome]) -> list[str]:
    """One line a faulty batch; without figures, which differ from machine to machine."""
    faulty = [outcome for outcome in outcomes if outcome.faults]
    lines = [
        f"* {outcome.runtime.package} {outcome.runtime.version}, `{outcome.kind}`, {outcome.implementation}, "
        f"{outcome.batch}: {', '.join(fault.partition(':')[0] for fault in outcome.faults)}"
        for outcome in faulty
    ]
    return ["What differs:", "", *lines, ""] if lines else []

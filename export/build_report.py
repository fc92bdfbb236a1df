"""What a run did, for people: a line as each artefact is settled, and a table at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from yolo_assigner.export.build_run import BUILT, FAILED, SKIPPED, Outcome


class Progress:
    """Prints a line per outcome.

    Args:
        total: How many there will be.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def show(self, outcome: Outcome) -> None:
        """Print one."""
        self._done += 1
        took = f" in {outcome.seconds:.1f} s" if outcome.state == BUILT else ""
        reason = f": {textwrap.indent(outcome.reason, '  ').strip()}" if outcome.reason else ""
        print(f"[{self._done}/{self._total}] {outcome.label} {outcome.state}{took}{reason}", flush=True)


def summary(outcomes: Sequence[Outcome]) -> str:
    """All outcomes as a Markdown table, and how many there are of each state."""
    lines = ["| artefact | state | seconds | |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.1f}" if outcome.state in (BUILT, FAILED) else ""
        # A bar would end the cell.
        reason = outcome.reason.partition("\n")[0].replace("|", "\\|")
        state = outcome.state.upper() if outcome.state in (FAILED, SKIPPED) else outcome.state
        lines.append(f"| {outcome.label} | {state} | {seconds} | {reason} |")
    states = [outcome.state for outcome in outcomes]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return "\n".join([*lines, "", f"{len(outcomes)} artefacts: {counts}"])

"""``yolo-assigner export all``."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from yolo_assigner.export.repository.run import BUILT, FAILED, SKIPPED, Outcome

SUMMARY = "build all models and engines that a file names, where not up to date"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--config", required=True, type=Path, metavar="FILE.toml", help="what to build")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the repository's folder, in place of the file's `out`")
    parser.add_argument("--jobs", type=_count, metavar="N", help="builds at a time; by default one per core, at most 4")
    parser.add_argument(
        "--prune", action="store_true", help="delete what was built here once and the file no longer names"
    )
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def run(options: argparse.Namespace) -> int:
    """Build; 1 when an artefact failed, or was skipped because of one that did."""
    from yolo_assigner.export.repository.command import Progress, summary
    from yolo_assigner.export.repository.config import load_config
    from yolo_assigner.export.repository.plan import plan_targets
    from yolo_assigner.export.repository.run import Run, default_jobs
    from yolo_assigner.export.repository.state import open_repository

    config = load_config(options.config)
    targets = plan_targets(config)
    out = options.out or config.out
    if out is None:
        raise ValueError(f'{config.path} names no folder to build into; write out = "repository", or give --out DIR')
    with open_repository(out) as repository:
        progress = Progress(len(targets))
        outcomes = Run(targets, repository, options.jobs or default_jobs(), progress.show).build()
        unnamed = repository.unnamed([target.label for target in targets])
        if options.prune:
            for label in unnamed:
                repository.remove(label)
    print(f"\n{summary(outcomes)}\n\nrepository: {out}")
    if unnamed:
        done = "deleted" if options.prune else "still there, delete with --prune"
        print(f"no longer named by {config.path}, {done}: {', '.join(unnamed)}")
    failed = sum(not outcome.good for outcome in outcomes)
    if failed:
        print(f"error: {failed} of {len(outcomes)} artefacts are not there as they should be", file=sys.stderr)
    return 1 if failed else 0


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

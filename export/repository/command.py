"""``yolo-assigner export all``."""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

SUMMARY = "build all models and engines that a file names, where not up to date"
EXAMPLES = """\
  yolo-assigner export all --config build.toml
  yolo-assigner export all --config build.toml --out repository --jobs 2 --prune"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
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
    from yolo_assigner.export.repository.config import load_config
    from yolo_assigner.export.repository.plan import plan_targets
    from yolo_assigner.export.repository.run import Outcome, Run, default_jobs, summary
    from yolo_assigner.export.repository.state import open_repository

    config = load_config(options.config)
    targets = plan_targets(config)
    out = options.out or config.out
    if out is None:
        raise ValueError(f'{config.path} names no folder to build into; write out = "repository", or give --out DIR')
    numbers = itertools.count(1)

    def show(outcome: Outcome) -> None:
        print(f"[{next(numbers)}/{len(targets)}] {outcome.line}", flush=True)

    with open_repository(out) as repository:
        outcomes = Run(targets, repository, options.jobs or default_jobs(), show).build()
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

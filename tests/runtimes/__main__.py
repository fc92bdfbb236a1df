"""Run every exported kind, both implementations, in every runtime, and compare with torch in float64.

Ends with 1 when a batch crashes, fails or differs, when no runtime could be installed, or when one could not and a
table was to be written.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from safetensors.numpy import load_file, save_file

from tests.exports import CACHE
from tests.runtimes.batches import Batch, all_batches
from tests.runtimes.compare import Judge
from tests.runtimes.environments import RUNTIMES, Runtime, SkippedError, command
from tests.runtimes.models import IMPLEMENTATIONS, KINDS, runnable_model
from tests.runtimes.process import run_batches
from tests.runtimes.table import Outcome, write_table
from yolo_assigner.export.verification.reference import flatten


class Model(NamedTuple):
    """A model with its batches by the names of their files.

    Attributes:
        path: The ONNX file.
        judge: Compares what comes out.
        batches: By file name.
        folder: Of the files.
    """

    path: Path
    judge: Judge
    batches: dict[str, Batch]
    folder: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, say what fails, and return the exit code."""
    options = _options(arguments)
    chosen = _chosen(options.runtimes)
    with tempfile.TemporaryDirectory() as temporary:
        wanted = [*product(options.kinds, options.implementations)]
        models = _models(wanted, Path(temporary))
        outcomes: list[Outcome] = []
        for runtime in chosen:
            outcomes += _run_runtime(runtime, models, options.cache, Path(temporary))
    skipped = [runtime.requirement for runtime in chosen if runtime not in {outcome.runtime for outcome in outcomes}]
    if options.table and not skipped:
        write_table(options.table, outcomes)
    failed = sum(bool(outcome.faults) for outcome in outcomes)
    _say(f"{len(outcomes)} batches ran, {failed} failed; skipped: {', '.join(skipped) or 'nothing'}")
    return 1 if failed or not outcomes or (options.table and skipped) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.runtimes", description=__doc__)
    parser.add_argument("--runtimes", nargs="*", default=[], metavar="NAME", help="PACKAGE or PACKAGE==VERSION; all")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS, help="all")
    parser.add_argument("--implementations", nargs="*", default=IMPLEMENTATIONS, choices=IMPLEMENTATIONS, help="both")
    parser.add_argument("--cache", type=Path, default=CACHE / "runtimes", help="keeps environments; %(default)s")
    parser.add_argument("--table", type=Path, help="page to write the table into")
    return parser.parse_args(arguments)


def _chosen(names: Sequence[str]) -> list[Runtime]:
    """The named runtimes; all where none is named.

    Raises:
        SystemExit: A name is unknown.
    """
    known = {name for runtime in RUNTIMES for name in (runtime.package, runtime.requirement)}
    if unknown := set(names) - known:
        sys.exit(f"error: no runtime {', '.join(sorted(unknown))}; choose from {', '.join(sorted(known))}")
    return [r for r in RUNTIMES if not names or r.package in names or r.requirement in names]


def _models(wanted: Sequence[tuple[str, str]], temporary: Path) -> list[Model]:
    _say(f"== {len(wanted)} models, exported where the sources have changed")
    with ProcessPoolExecutor(min(len(wanted), os.cpu_count() or 1), get_context("spawn")) as pool:
        making = [pool.submit(runnable_model, kind, implementation, temporary) for kind, implementation in wanted]
        models = []
        for (kind, implementation), future in zip(wanted, making, strict=True):
            models.append(prepare(future.result(), temporary))
            _say(f"  {kind}, {implementation}")
    return models


def prepare(path: Path, temporary: Path) -> Model:
    """Write the inputs of every batch that a model has a use for."""
    judge = Judge(path)
    folder = temporary / path.stem
    folder.mkdir()
    batches = {}
    for number, batch in enumerate(all_batches(judge.numbers)):
        inputs = batch.inputs(judge.kind, judge.numbers)
        if inputs is not None:
            name = f"{number:02}.safetensors"
            names = [spec.name for spec in judge.specs]
            tensors = zip(names, flatten(inputs), strict=True)
            save_file({name: tensor.contiguous().numpy() for name, tensor in tensors}, folder / name)
            batches[name] = batch
    return Model(path, judge, batches, folder)


def _run_runtime(runtime: Runtime, models: Sequence[Model], cache: Path, temporary: Path) -> list[Outcome]:
    _say(f"== {runtime.requirement}")
    try:
        words, folder = command(runtime, cache)
    except SkippedError as error:
        _say(f"SKIPPED {runtime.requirement}: {error}")
        return []
    outcomes = []

    def run(model: Model) -> list[Outcome]:
        return _run_model(runtime, words, folder, model, temporary / runtime.requirement / model.path.stem)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for model, found in zip(models, pool.map(run, models), strict=True):
            outcomes += found
            _report(model, found)
    return outcomes


def _run_model(runtime: Runtime, words: list[str], folder: Path, model: Model, out: Path) -> list[Outcome]:
    reasons = run_batches(words, folder, model.path, [model.folder / name for name in model.batches], out)
    outcomes = []
    for name, batch in model.batches.items():
        reason = reasons[name]
        faults = model.judge.differences(batch, load_file(out / name)) if reason is None else [reason]
        outcomes.append(
            Outcome(runtime, model.judge.kind, model.judge.implementation, batch.group, batch.name, tuple(faults))
        )
    return outcomes


def _report(model: Model, outcomes: Sequence[Outcome]) -> None:
    right = sum(not outcome.faults for outcome in outcomes)
    _say(f"  {model.judge.kind}, {model.judge.implementation}: {right} of {len(outcomes)} right")
    same: dict[tuple[str, ...], list[str]] = {}
    for outcome in outcomes:
        same.setdefault(outcome.faults, []).append(outcome.batch)
    for faults, batches in same.items():
        if faults:
            named = "all" if len(batches) == len(outcomes) else ", ".join(batches)
            _say(f"    FAILED {named}: {'; '.join(faults)}")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks.gpu``: correctness, times, memory and lower bounds on one GPU. See docs/gpu.md."""

from __future__ import annotations

import argparse
import faulthandler
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common.report import RESULTS, first_line
from benchmarks.gpu.pack import models_of
from benchmarks.gpu.report import report
from benchmarks.gpu.results import Entry, Results, key_of
from benchmarks.gpu.units import Plan, Unit, units
from yolo_assigner.export.contract import ContractError
from yolo_assigner.serve.inference.runners.base import RunnerError

NOT_USABLE = 3
MOST_PROCESSES = 12  # workers that are started one after the other
STALL = 120.0  # seconds after which a unit counts as hanging; compiling one takes up to a minute


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is missing, write the JSON and the tables, print the tables."""
    words = list(sys.argv[1:] if words is None else words)
    options = parser().parse_args(words)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU; see whether nvidia-smi lists one", file=sys.stderr)
        return 2
    every = units(Plan(device, options.quick, options.models))
    todo = [unit for unit in every if unit.name.startswith(tuple(options.only) or "")]
    results = Results(options.out, {**key_of(device), "quick": options.quick})
    if options.worker:
        return work(todo, results, device, options.minutes * 60)
    results.retry(options.again)
    supervise(words, results, options.minutes * 60)
    text = report(results, [unit.name for unit in todo])
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{options.out} and its table beside it")
    return 0 if complete(results, todo) else 1


def parser() -> argparse.ArgumentParser:
    """The parser of the command's options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    made.add_argument("--out", type=Path, default=RESULTS / "gpu.json", help="results; nothing there is measured again")
    made.add_argument("--models", type=Path, default=models_of(), help="folder of exported models")
    made.add_argument("--minutes", type=float, default=8.0, help="time for everything")
    made.add_argument("--device", help="the GPU where there is one, else cpu")
    made.add_argument("--quick", action="store_true", help="small and few: to see that everything works")
    made.add_argument("--only", nargs="+", default=[], metavar="WORD", help="units that begin so, as `time loss`")
    made.add_argument("--again", nargs="+", default=[], metavar="NAME", help="that broke the device before: run them")
    made.add_argument("--worker", action="store_true", help="in this process, without a report; a crash then ends it")
    return made


def supervise(words: Sequence[str], results: Results, seconds: float, module: str = "benchmarks.gpu") -> None:
    """Start a module with these words as a worker, and again where it dies or hangs, until it succeeds or time is over.

    The seconds are for all workers together.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MOST_PROCESSES):
        left, known = deadline - time.monotonic(), len(results.entries)
        command = [sys.executable, "-W", "ignore", "-m", module, *words, "--worker", "--minutes", str(left / 60)]
        try:
            status = subprocess.run(command, check=False, timeout=max(left, 0)).returncode
        except subprocess.TimeoutExpired:
            results.reload()
            results.drop_unfinished()
            return
        results.reload()
        if status == 0 or len(results.entries) == known:  # done, or died before the first unit
            return
        print(f"the process ended with status {status}; going on", flush=True)


def work(todo: Sequence[Unit], results: Results, device: torch.device, seconds: float, stall: float = STALL) -> int:
    """Run what has no entry in this process; the exit code is 3 when the device no longer works.

    A unit that takes longer than ``stall`` seconds ends the process.
    """
    if device.type == "cuda":
        # The default stream makes others wait, and graphs cannot be captured in it.
        torch.cuda.set_stream(torch.cuda.Stream(device))
    began = time.monotonic()
    for number, unit in enumerate(todo, 1):
        if unit.name in results.entries:
            continue
        if time.monotonic() - began > seconds:
            print("the time is over; run the command again to go on", flush=True)
            break
        print(f"[{number}/{len(todo)}, {time.monotonic() - began:.0f} s] {unit.name}", flush=True)
        if unit.contender and (where := results.broken().get(unit.contender)):
            results.keep(unit.name, {"contender": unit.contender, "reason": f"left out, because of {where}"})
            continue
        results.begin(unit.name, unit.contender)
        # Ends the process from a thread of its own, also where the driver never returns.
        faulthandler.dump_traceback_later(stall, exit=True, file=2)
        results.keep(unit.name, entry := attempt(unit, device))
        faulthandler.cancel_dump_traceback_later()
        if entry.get("broke"):
            return NOT_USABLE
    return 0


def attempt(unit: Unit, device: torch.device) -> Entry:
    """Run a unit: its entry, or the reason why it has none."""
    try:
        return {**unit.run(), "contender": unit.contender}
    except (RunnerError, ContractError, ImportError) as error:
        return {"contender": unit.contender, "reason": str(error)}
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        print(f"    failed: {reason}", flush=True)
        return {"contender": unit.contender, "reason": reason, "failed": True, "broke": not usable(device)}


def usable(device: torch.device) -> bool:
    """Whether the device still computes; after some errors a GPU does not, in the process that caused them."""
    try:
        return bool((torch.ones(2, device=device) + 1).sum().item() == 4)
    except RuntimeError:
        return False


def complete(results: Results, todo: Sequence[Unit]) -> bool:
    """Whether every unit has its entry, none failed, and all comparisons are within their limits."""
    found = [results.entries.get(unit.name, {"failed": True}) for unit in todo]
    return not any(entry.get("failed") for entry in found) and all(
        check["ok"] for entry in found for check in entry.get("checks", [])
    )


if __name__ == "__main__":
    sys.exit(main())

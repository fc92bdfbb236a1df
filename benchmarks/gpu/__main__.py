"""``python -m benchmarks.gpu``: correctness, times, memory and lower bounds on one GPU. See docs/gpu.md."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import models
from benchmarks.gpu.environment import ROOT, key_of
from benchmarks.gpu.parts import Plan, make_parts
from benchmarks.gpu.report import checks_of, report
from benchmarks.gpu.runner import run_parts, supervise
from benchmarks.gpu.store import Store

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
NOT_USABLE = 3


def main(words: list[str] | None = None) -> int:
    """Measure what is missing, write the JSON and the tables, print the tables."""
    words = sys.argv[1:] if words is None else words
    options = parser().parse_args(words)
    if options.prepare:
        models.prepare(options.prepare)
        return 0
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU; see whether nvidia-smi lists one", file=sys.stderr)
        return 2
    plan = Plan(device, options.quick, tuple(options.models), tuple(options.without))
    store = Store(options.out, key_of(device, options.quick))
    if options.worker:
        return work(plan, store, options.minutes * 60, options.skip)
    started = time.monotonic()
    names = list(make_parts(plan, store, print))
    store.forgive(options.again)
    store.reopen(options.without)
    if options.alone:
        work(plan, store, options.minutes * 60, [])
    else:
        supervise([*words, "--worker"], store, options.minutes * 60)
    store = Store(options.out, key_of(device, options.quick))
    text = report(store, names)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{options.out} and its table beside it, {time.monotonic() - started:.0f} s")
    return 0 if all(store.is_done(name) for name in names) and right(store, names) else 1


def parser() -> argparse.ArgumentParser:
    """The parser of the command's options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    made.add_argument("--out", type=Path, default=RESULTS, help="results; what is there already is not measured again")
    made.add_argument("--models", type=Path, nargs="+", default=[], metavar="DIR", help="what --prepare made")
    made.add_argument("--prepare", type=Path, metavar="DIR", help="only export the models and build engines, then end")
    made.add_argument("--minutes", type=float, default=8.0, help="no part is begun later, and none goes on for longer")
    made.add_argument("--device", help="the GPU where there is one, else cpu")
    made.add_argument("--quick", action="store_true", help="small and few: to see that everything works")
    made.add_argument("--alone", action="store_true", help="in this process; a crash then ends all of it")
    made.add_argument("--without", nargs="+", default=[], metavar="NAME", help="contenders to leave out")
    made.add_argument("--again", nargs="+", default=[], metavar="NAME", help="that broke the device before: run them")
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--skip", nargs="*", default=[], help=argparse.SUPPRESS)
    return made


def work(plan: Plan, store: Store, seconds: float, skip: list[str]) -> int:
    """Measure in this process; the exit code is 3 when the device no longer works."""

    def say(text: str) -> None:
        print(text, flush=True)

    if plan.device.type == "cuda":
        # The default stream makes others wait, and graphs cannot be captured in it.
        torch.cuda.set_stream(torch.cuda.Stream(plan.device))
    parts = make_parts(plan, store, lambda text: say(f"    {text}"))
    whole = run_parts(parts, store, seconds=seconds, say=say, skip=skip, usable=lambda: usable(plan.device))
    return 0 if whole else NOT_USABLE


def usable(device: torch.device) -> bool:
    """Whether the device still computes; after some errors a GPU does not, in the process that caused them."""
    try:
        return bool((torch.ones(2, device=device) + 1).sum().item() == 4)
    except RuntimeError:
        return False


def right(store: Store, names: Sequence[str]) -> bool:
    """Whether comparisons are within their limits, no call waits that must not, and no contender broke the device."""
    return not store.all_broken() and all(
        check["ok"] for check in [*checks_of(store, names), *(store.result("waiting") or [])]
    )


if __name__ == "__main__":
    sys.exit(main())

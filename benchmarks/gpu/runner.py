"""Runs parts one after the other in a worker process; a crash or a hanging kernel costs no more than its contender."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.report import first_line
from benchmarks.gpu.store import Store

MOST_PROCESSES = 12  # workers that are started one after the other


def supervise(words: Sequence[str], store: Store, seconds: float, module: str = "benchmarks.gpu") -> None:
    """Start the command as a worker, and again where it dies, until it succeeds or the time is over.

    Args:
        words: Arguments of the worker.
        store: Results of the worker.
        seconds: Time for all workers together.
        module: Module that the worker runs.
    """
    deadline = time.monotonic() + seconds
    for name in store.under_way():  # of a command that was killed
        store.fail(name, "the command was ended while it ran")
    before = dict(store.parts)  # what failed in an earlier run is tried once more
    skip: list[str] = []
    for _ in range(MOST_PROCESSES):
        left = deadline - time.monotonic()
        if left <= 0:
            return
        known = dict(store.parts)
        status, reason = _work([*words, "--minutes", str(left / 60), "--skip", *skip], left, module)
        store.reload()
        for name in store.under_way():
            store.fail(name, reason, broke=status is not None)
        skip = [name for name in store.parts if store.gave_up(name) and store.parts[name] != before.get(name)]
        if status == 0 or store.parts == known:  # done, or died before the first part, as the next one would
            return
        print(f"{reason}; going on", flush=True)


def _work(words: Sequence[str], seconds: float, module: str) -> tuple[int | None, str]:
    """Run a worker: its exit status, None where the time was over, and the reason for a part that it did not finish."""
    try:
        command = [sys.executable, "-W", "ignore", "-m", module, *words]
        status = subprocess.run(command, check=False, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return None, "not done when the time was over; run the command again to go on, or give it more --minutes"
    return status, f"its process ended with status {status}"


def run_parts(
    parts: Mapping[str, Callable[[], Any]],
    store: Store,
    *,
    seconds: float,
    say: Callable[[str], None],
    skip: Sequence[str] = (),
    usable: Callable[[], bool] = lambda: True,
) -> bool:
    """Run the parts that are not done, in order; those that failed before come last.

    Args:
        parts: Functions by name.
        store: Receives each result at once.
        seconds: Time after which no part is begun.
        say: Receives lines of progress.
        skip: Parts that failed in an earlier worker of this run.
        usable: Tells whether the device still works after a failure.

    Returns:
        False when the device no longer works, else True.
    """
    started = time.monotonic()
    order = sorted(parts, key=store.gave_up)
    for number, name in enumerate(order, 1):
        head = f"[{number}/{len(parts)}] {name}"
        if store.is_done(name):
            say(f"{head}: there already")
            continue
        if name in skip and store.gave_up(name):
            continue
        if time.monotonic() - started > seconds:
            say(f"{head}: the time is over; run the command again to go on")
            return True
        say(head)
        store.begin(name)
        began = time.monotonic()
        try:
            store.finish(name, parts[name](), time.monotonic() - began)
        except Exception as error:
            lost = not usable()
            store.fail(name, f"{type(error).__name__}: {first_line(error)}", broke=lost)
            say(f"{head}: failed, {first_line(error)}")
            if lost:
                return False
    return True

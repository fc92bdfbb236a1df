"""Measuring in a process of its own, so that no crash and no hanging kernel costs more than its contender."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.gpu.store import Store

# So often a new process goes on where one died.
MOST_PROCESSES = 12


def supervise(words: Sequence[str], store: Store, seconds: float, module: str = "benchmarks.gpu") -> None:
    """Start the command as a worker, again where it dies, until it ends well or the time is over.

    Args:
        words: Of the worker.
        store: Its results.
        seconds: For all together.
        module: The command.
    """
    deadline = time.monotonic() + seconds
    for name in store.under_way():  # of a command that was ended from outside
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
        if status == 0 or store.parts == known:  # done, or dead before it came to any part: so would be the next
            return
        print(f"{reason}; going on", flush=True)


def _work(words: Sequence[str], seconds: float, module: str) -> tuple[int | None, str]:
    """Status of a worker, None where the time was over, and what to say of a part that it had under way."""
    try:
        command = [sys.executable, "-W", "ignore", "-m", module, *words]
        status = subprocess.run(command, check=False, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return None, "not done when the time was over; run the command again to go on, or give it more --minutes"
    return status, f"its process ended with status {status}"

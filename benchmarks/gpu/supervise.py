"""Measuring in a process of its own, so that no crash and no hanging kernel costs more than the part it was in."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.gpu.store import Store

# So often a new process goes on where one died.
MOST_PROCESSES = 6


def supervise(words: Sequence[str], store: Store, seconds: float, module: str = "benchmarks.gpu") -> None:
    """Start the command as a worker, again where it dies, until it ends well or the time is over.

    Args:
        words: Of the worker.
        store: Its results.
        seconds: For all together.
        module: The command.
    """
    deadline = time.monotonic() + seconds
    failed: list[str] = []
    for _ in range(MOST_PROCESSES):
        left = deadline - time.monotonic()
        if left <= 0:
            return
        command = [sys.executable, "-W", "ignore", "-m", module, *words, "--minutes", str(left / 60), "--skip", *failed]
        try:
            status = subprocess.run(command, check=False, timeout=left).returncode
            reason = f"its process ended with status {status}"
        except subprocess.TimeoutExpired:
            status, reason = -1, f"not done after {seconds / 60:.0f} minutes; --minutes gives more"
        store.reload()
        for name in store.under_way():
            store.fail(name, reason)
        failed = [name for name in store.parts if store.reason(name)]
        if status == 0:
            return
        print(f"{reason}; going on", flush=True)

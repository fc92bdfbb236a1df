"""Engines' threads give way to the one that answers: a server that is busy still says so at once."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Above the event loop: a third of its share of a core for which both wait, and a ninth. Threads of one process wait for
# each other's interpreter, too, so that those of engines must not be held up as long.
NICENESS, PROCESS_NICENESS = 5, 10
# Of the interpreter, in place of 0.005: the event loop needs it several times for one reply, and waits each time.
SWITCH_SECONDS = 0.001
MOST_HELPERS = 32
_USUAL = os.getpriority(os.PRIO_PROCESS, 0) if sys.platform == "linux" else 0  # when the process began


def give_way() -> None:
    """Lower the priority of the calling thread, and of those that libraries start from it. Linux only, else nothing."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # forbidden in some sandboxes; then all are alike, as before
            level = max(os.getpriority(os.PRIO_PROCESS, thread), _USUAL + NICENESS)
            os.setpriority(os.PRIO_PROCESS, thread, level)


def all_give_way() -> None:
    """The same for a process of engines alone: all threads that it has, and those that they start. Linux only."""
    if sys.platform == "linux":
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(task.name), _USUAL + PROCESS_NICENESS)


def helpers() -> ThreadPoolExecutor:
    """Threads for work on large bodies. More than there are cores would only wait for the interpreter.

    They do not give way: they hold the interpreter much of the time, and the event loop waits for it.
    """
    count = min(max(os.cpu_count() or 1, 2), MOST_HELPERS)
    return ThreadPoolExecutor(count, thread_name_prefix="helper")


def switch_quickly() -> None:
    """Let threads take the interpreter from each other more often."""
    sys.setswitchinterval(SWITCH_SECONDS)


def settle() -> None:
    """Take what is there now, such as modules and graphs, out of the garbage collector's view.

    A full collection would go through all of it, tenths of a second on a busy machine, while nobody is answered.
    """
    gc.collect()
    gc.freeze()

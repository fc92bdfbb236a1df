"""What tests and benchmarks start: ended whatever becomes of them, and nothing of it may stay. Linux."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "TEST_RUN_OF_THIS_PROCESS"
STARTED = "STARTED_WITHIN"
PROCESSES = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - POSIX shared memory
# Helpers of Python's that last as long as the process that uses them.
HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
ENDED_SECONDS = 60.0


def start_guard() -> subprocess.Popen[bytes]:
    """Start a process that ends all processes begun from now on, and theirs, when this one ends or closes its input.

    They are known by a variable of their environment, so that sessions and groups of their own do not hide them.
    Elsewhere than on Linux nothing is done.
    """
    os.environ[MARK] = uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    return subprocess.Popen(
        [sys.executable, __file__, os.environ[MARK]], stdin=subprocess.PIPE, env=environment, start_new_session=True
    )


def marked(mark: str, begins: bytes = b"", variable: str = STARTED) -> list[int]:
    """Ids of the other processes that have a mark in their environment and whose command line begins so."""
    found = []
    for folder in PROCESSES.glob("[0-9]*"):
        with suppress(OSError):  # another user's, or ended
            has = f"{variable}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if has and int(folder.name) != os.getpid() and (folder / "cmdline").read_bytes().startswith(begins):
                found.append(int(folder.name))
    return found


@contextmanager
def nothing_left(seconds: float = ENDED_SECONDS) -> Iterator[str]:
    """Check that the processes started within end, and that shared memory has no new object that nobody uses.

    Processes that do not end are killed. An object that a process still maps is that process's, perhaps another test's.

    Args:
        seconds: How long they may take after the end.

    Yields:
        Their mark, for :func:`marked`.

    Raises:
        RuntimeError: Something is left; the text names it.
    """
    mark, outer, before = uuid.uuid4().hex, os.environ.get(STARTED), _shared_memory()
    os.environ[STARTED] = mark
    try:
        yield mark
        until = time.monotonic() + seconds
        new = _shared_memory() - before  # what others make later is theirs
        while (left := [*_running(mark).values(), *_unused(new)]) and time.monotonic() < until:
            time.sleep(0.05)
        if left:
            raise RuntimeError(f"left after {seconds:g} s: {', '.join(left)}")
    finally:
        os.environ.pop(STARTED, None)
        if outer is not None:
            os.environ[STARTED] = outer
        _kill(_running(mark))


def _running(mark: str) -> dict[int, str]:
    """Ids of marked processes with their command lines, but for helpers of this one."""
    found = {}
    for pid in marked(mark):
        with suppress(OSError):
            words = (PROCESSES / str(pid) / "cmdline").read_bytes()
            parent = (PROCESSES / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
            if int(parent) != os.getpid() or not any(helper in words for helper in HELPERS):
                found[pid] = words.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return found


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _unused(names: set[str]) -> set[str]:
    """Those of the objects in shared memory that no process maps."""
    unused = names & _shared_memory()
    for folder in PROCESSES.glob("[0-9]*") if unused else ():
        with suppress(OSError):
            maps = (folder / "maps").read_text(encoding="utf-8", errors="replace")
            unused = {name for name in unused if f"{SHARED_MEMORY / name}\n" not in maps}
    return unused


def _shared_memory() -> set[str]:
    """Names of all objects in shared memory."""
    return {path.name for path in SHARED_MEMORY.iterdir()}


if __name__ == "__main__":
    sys.stdin.read()
    _kill(marked(sys.argv[1], variable=MARK))

"""Ends the processes that tests start, whatever becomes of the tests. Linux; elsewhere nothing is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

MARK = "TEST_RUN_OF_THIS_PROCESS"
PROCESSES = Path("/proc")


def start_guard() -> subprocess.Popen[bytes]:
    """Start a process that ends all processes begun from now on, and theirs, when this one ends or closes its input.

    They are known by a variable of their environment, so that sessions and groups of their own do not hide them.
    """
    os.environ[MARK] = uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    return subprocess.Popen(
        [sys.executable, __file__, os.environ[MARK]], stdin=subprocess.PIPE, env=environment, start_new_session=True
    )


def end_marked(run: str) -> None:
    """Kill the processes of a test run."""
    mark = f"{MARK}={run}".encode()
    for folder in PROCESSES.glob("[0-9]*"):
        with suppress(OSError):  # another user's, or ended
            if mark in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)


if __name__ == "__main__":
    sys.stdin.read()
    end_marked(sys.argv[1])

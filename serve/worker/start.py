"""How the engines' process begins, and what its end says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from yolo_assigner.serve.configuration import PREFIX
from yolo_assigner.serve.engine.system import end_before_others

# `-m` puts the working folder on the path, where a user's own modules may be; it does so only if this program does.
WORKING_FOLDER = sys.path[0] in ("", str(Path.cwd()))
COMMAND = (sys.executable, *([] if WORKING_FOLDER else ["-P"]), "-m", "yolo_assigner.serve.worker")
STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
LINE = 2**16  # most bytes of what it says that are passed on at a time


def start(command: Sequence[str], descriptor: int) -> subprocess.Popen[bytes]:
    """Start the process. Signals for all processes of a group do not reach it before it ignores them.

    It gets no setting from the environment, keys and passwords among them; what it needs is sent to it.
    Where memory is short, the system ends this process, which is started again, and not the one that answers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        process = subprocess.Popen(  # noqa: S603 - this program itself
            [*command, str(descriptor)],
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    end_before_others(process.pid)
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    threading.Thread(target=_pass_on, args=(process.stdout,), name="engines-log", daemon=True).start()
    return process


def _pass_on(log: IO[bytes]) -> None:
    """Write what the process says to standard error. It never waits for our reader, nor does its native code."""
    with log:
        while line := log.readline(LINE):
            sys.stderr.write(line.decode(errors="backslashreplace"))


def ending(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"

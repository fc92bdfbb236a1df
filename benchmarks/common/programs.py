"""Programs that run as a whole: their time with the start, and their memory. Linux and macOS."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.processes import nothing_left


class Run(NamedTuple):
    """A program that ran.

    Attributes:
        seconds: From its start to its end.
        peak_mib: The most memory of one of its processes, those that it waited for included.
    """

    seconds: float
    peak_mib: float


def run_program(words: Sequence[str | Path]) -> Run:
    """Run a program of this Python, keep its output to itself, and check that nothing is left of it.

    Args:
        words: Behind the name of the interpreter.

    Raises:
        RuntimeError: It failed, with the end of what it said; or something is left of it.
    """
    with tempfile.TemporaryFile() as said, nothing_left():
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-W", "ignore", *words], stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            tail = said.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(map(str, words))} ended with {process.returncode}: {tail}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes, or kibibytes
    return Run(seconds, used.ru_maxrss * unit / 2**20)

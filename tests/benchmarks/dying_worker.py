"""A worker of ``benchmarks.gpu`` with units of its own: contender y kills the process in b, and z hangs in d."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.__main__ import work
from benchmarks.gpu.results import Entry, Results
from benchmarks.gpu.units import Unit

KEY = {"code": "1"}
CONTENDERS = {"a": "x", "b": "y", "c": "y", "d": "z", "e": "x"}


def run(name: str) -> Entry:
    """The unit's work."""
    if name == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "d":
        time.sleep(60)
    return {"process": os.getpid()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--worker", action="store_true", required=True)
    parser.add_argument("--minutes", type=float, required=True)
    options = parser.parse_args()
    todo = [Unit(name, contender, lambda name=name: run(name)) for name, contender in CONTENDERS.items()]  # type: ignore[misc]
    sys.exit(work(todo, Results(options.path, KEY), torch.device("cpu"), 60 * options.minutes, stall=4))

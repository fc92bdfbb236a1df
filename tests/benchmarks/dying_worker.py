"""A worker for tests of ``supervise`` that dies in part b and, with ``--hang``, hangs in part c.

With ``--contenders`` each part has two, and the second one of part b kills the process.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.store import FAILED, Kept, Store

KEY = {"code": "1"}


def contenders(store: Store, part: str) -> list[str]:
    """Entries of a part's contenders, or the reason why one is left out."""

    def run(name: str) -> str:
        if (part, name) == ("b", "y"):
            os.kill(os.getpid(), signal.SIGKILL)
        return name

    kept = Kept(store, part)
    return [kept.left_out(name) or kept.entry(name, partial(run, name)) for name in kept.order("xy")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--contenders", action="store_true")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--skip", nargs="*", required=True)
    options = parser.parse_args()
    store = Store(options.path, KEY)
    for name in "abc":
        if store.is_done(name) or (name in options.skip and store.state(name) == FAILED):
            continue
        store.begin(name)
        if options.contenders:
            store.finish(name, contenders(store, name), 0.0)
            continue
        if name == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "c" and options.hang:
            time.sleep(60)
        store.finish(name, os.getpid(), 0.0)

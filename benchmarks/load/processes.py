"""Processes of clients, and where the models lie that they ask."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ARTIFACTS = Path("out/load")
NICENESS = 10  # of clients, which in earnest have cores of their own; the probe is like the server
FORK = multiprocessing.get_context("fork")  # clients share the requests and the memory that this process has made


def fork(work: Callable[..., None], *values: Any) -> Connection:
    """Start a process that ends by itself; what it sends through its last argument comes here."""
    ours, theirs = FORK.Pipe(duplex=False)
    FORK.Process(target=work, args=(*values, theirs), daemon=True).start()
    theirs.close()  # so that the end of a process that failed is an error here and no endless wait
    return ours

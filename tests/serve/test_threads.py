"""Threads in which engines compute have a lower priority than the one that answers."""

from __future__ import annotations

import gc
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve.engine.threads import NICENESS, give_way, settle
from tests.serve.conftest import Live, binary_rows, loss_inputs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")


def test_the_event_loop_goes_before_engines(live: Live) -> None:
    rows, blob = binary_rows(loss_inputs())
    assert live.infer("loss", {"inputs": rows}, blob).status == 200
    threads = [int(task.name) for task in Path(f"/proc/{live.process.pid}/task").iterdir()]
    levels = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    usual = levels[live.process.pid]  # of the main thread, which runs the loop
    assert usual == os.getpriority(os.PRIO_PROCESS, 0)
    below = [level for level in levels.values() if level == usual + NICENESS]
    assert len(below) >= 3  # an engine for each model


def test_only_its_own_thread_gives_way() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        assert pool.submit(os.getpriority, os.PRIO_PROCESS, 0).result() == before + NICENESS
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_what_was_there_is_out_of_the_collectors_view() -> None:
    settle()
    try:
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()

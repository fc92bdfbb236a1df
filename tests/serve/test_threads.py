"""The threads of engines have a lower priority than the thread that answers callers."""

from __future__ import annotations

import gc
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serve.conftest import Live, assigner_inputs, binary_rows, loss_inputs, start, stop, worker_of
from yolo_assigner.serve.system import NICENESS, PROCESS_NICENESS, freeze_gc, lower_thread_priority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")


def test_answering_has_priority_over_computing(live: Live) -> None:
    """Every thread of the engine process, also those that libraries started."""
    rows, blob = binary_rows(loss_inputs())
    assert live.infer("loss", {"inputs": rows}, blob).status == 200
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert levels(live.process.pid) == {usual}
    assert levels(worker_of(live)) == {usual + PROCESS_NICENESS}


def levels(pid: int) -> set[int]:
    """Niceness of a process's threads."""
    return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


def test_engines_in_the_servers_process_give_way(assigner_dir: Path) -> None:
    server = start("--artifacts", assigner_dir, "--no-engine-process")
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert levels(server.process.pid) == {usual, usual + NICENESS}
    rows, blob = binary_rows(assigner_inputs())
    assert server.infer("assigner", {"inputs": rows}, blob).status == 200
    assert stop(server) == 0


def test_only_its_own_thread_gives_way() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1, initializer=lower_thread_priority) as pool:
        assert pool.submit(os.getpriority, os.PRIO_PROCESS, 0).result() == before + NICENESS
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_what_was_there_is_out_of_the_collectors_view() -> None:
    freeze_gc()
    try:
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()

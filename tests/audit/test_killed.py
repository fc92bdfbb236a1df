"""A run that is killed ten times, each time at a random moment, and resumed: what an undisturbed run writes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra audit")

from tests.audit.predictions import contents, small_folder
from yolo_assigner.__main__ import main

FILES, KILLS, SEED = 40, 10, 0
# Its children begin with torch and the command loaded, so that they are killed in their work and not in its imports.
CONTEXT = multiprocessing.get_context("forkserver")


def run(folder: str, out: str) -> None:
    """Assign, in a process of its own."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    raise SystemExit(main(["assign", "--input", folder, "--output", out]))


def start(folder: Path, out: Path) -> ForkServerProcess:
    process = CONTEXT.Process(target=run, args=(str(folder), str(out)))
    process.start()
    return process


def written(out: Path) -> int:
    return len(list(out.rglob("*.parquet")))


def semaphores(process: ForkServerProcess) -> list[str]:
    """Named semaphores that a process has mapped; one that is killed leaves them in the system."""
    if sys.platform != "linux":
        return []
    try:
        lines = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has ended
        return []
    return [line for line in lines if "/dev/shm/sem." in line]  # noqa: S108


def kill_after(process: ForkServerProcess, out: Path, files: int, delay: float) -> None:
    """Kill a run some time after it has that many files."""
    while written(out) < files and process.is_alive():
        time.sleep(0.0005)
    time.sleep(delay)
    assert not semaphores(process)
    process.kill()
    process.join()


def finish(folder: Path, out: Path) -> None:
    process = start(folder, out)
    process.join()
    assert process.exitcode == 0


def test_a_run_that_is_killed_ten_times(tmp_path: Path) -> None:
    CONTEXT.set_forkserver_preload(["yolo_assigner.audit.assign.shard", "tqdm", __name__])
    folder, out = small_folder(tmp_path / "maps", FILES), tmp_path / "killed"
    finish(folder, tmp_path / "undisturbed")
    undisturbed = contents(tmp_path / "undisturbed")
    assert len(undisturbed) == FILES
    moments = random.Random(SEED)  # noqa: S311
    ended = []
    for files in sorted(moments.sample(range(1, FILES), KILLS)):
        process = start(folder, out)
        kill_after(process, out, files, moments.uniform(0, 0.01))
        ended.append(process.exitcode)
        there = {name: content for name, content in contents(out).items() if name.endswith(".parquet")}
        assert there.items() <= undisturbed.items()  # no file is half written
    assert ended.count(-signal.SIGKILL) >= 1
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    finish(folder, out)
    assert contents(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # each was computed once

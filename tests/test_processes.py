"""A test run leaves no process behind, whether its tests pass, fail or are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from tests.processes import SHARED_MEMORY, marked, nothing_left

ROOT = Path(__file__).parents[1]
RUN = (
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "no:cacheprovider",
    "-p",
    "timeout",  # whose settings are in the file below; the other plugins take seconds to load
    "--rootdir",
    str(ROOT),
    "-c",
    str(ROOT / "pyproject.toml"),
)
VARIABLES = {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
LEAVES = """
import subprocess, time
from pathlib import Path
from tests.guard import guard

def leave(name):
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    path = Path(__file__).with_name(name)
    path.with_suffix(".part").write_text(str(process.pid))
    path.with_suffix(".part").rename(path)
    return process

"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_tests_leave_ends_with_the_run(tmp_path: Path) -> None:
    ends = {"passes": "pass", "fails": "assert False", "loses": "del process"}
    tests = "\n".join(f"def test_{name}():\n    process = leave('{name}')\n    {ends[name]}\n" for name in ends)
    (tmp_path / "test_leaves.py").write_text(LEAVES + tests)
    subprocess.run([*RUN, tmp_path], stdout=subprocess.DEVNULL, check=False, env=os.environ | VARIABLES, cwd=tmp_path)
    pids = [int((tmp_path / name).read_text()) for name in ends]
    eventually(lambda: not any(map(alive, pids)))


def test_a_killed_run_ends_what_it_has_started(tmp_path: Path) -> None:
    (tmp_path / "test_leaves.py").write_text(f"{LEAVES}def test_lasts():\n    leave('pid')\n    time.sleep(600)\n")
    with subprocess.Popen([*RUN, tmp_path], stdout=subprocess.DEVNULL, env=os.environ | VARIABLES, cwd=tmp_path) as run:
        eventually((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)
        run.send_signal(signal.SIGKILL)
    eventually(lambda: not alive(pid))


def started(mark: str) -> subprocess.Popen[bytes]:
    """A process that lasts, once it can be seen."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    eventually(lambda: bool(marked(mark, b"sleep")))
    return process


def test_a_process_that_is_left_is_named_and_ended() -> None:
    with pytest.raises(RuntimeError, match="left after 0 s: sleep 600"), nothing_left(0) as mark:
        process = started(mark)
    assert process.wait(timeout=120) == -signal.SIGKILL


def test_an_object_that_is_left_in_shared_memory_is_named() -> None:
    path = SHARED_MEMORY / f"left-{uuid.uuid4().hex}"
    try:
        with pytest.raises(RuntimeError, match=path.name), nothing_left(0):
            path.touch()
    finally:
        path.unlink()


def test_an_object_that_a_process_uses_is_not_left() -> None:
    with nothing_left(0):
        used = SharedMemory(create=True, size=1)
    used.close()
    used.unlink()


def test_a_failure_ends_what_was_started() -> None:
    with suppress(ValueError), nothing_left() as mark:
        process = started(mark)
        raise ValueError
    assert process.wait(timeout=120) == -signal.SIGKILL


def test_what_ends_in_time_is_not_left() -> None:
    """Python's helpers of processes last as long as this one."""
    with nothing_left() as mark:
        assert os.environ["STARTED_WITHIN"] == mark
        process = subprocess.Popen(["sleep", "0.3"])
        one = get_context("spawn").Process(target=int)
        one.start()
        one.join()
    assert "STARTED_WITHIN" not in os.environ
    assert process.wait(timeout=120) == 0

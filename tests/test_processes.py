"""A test run leaves no process behind, whether its tests pass, fail or are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = (
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "no:cacheprovider",
    "--rootdir",
    str(ROOT),
    "-c",
    str(ROOT / "pyproject.toml"),
)
LEAVES = """
import subprocess, time
from pathlib import Path
from tests.conftest import guard

def test_leaves_a_process():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (Path(__file__).parent / "pid.part").write_text(str(process.pid))
    (Path(__file__).parent / "pid.part").rename(Path(__file__).parent / "pid")
    {end}
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


@pytest.mark.parametrize("end", ["pass", "assert False", "del process"])
def test_what_a_test_leaves_ends_with_the_run(tmp_path: Path, end: str) -> None:
    (tmp_path / "test_leaves.py").write_text(LEAVES.format(end=end))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*RUN, tmp_path], stdout=subprocess.DEVNULL, check=False, env=environment, cwd=tmp_path)
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: not alive(pid))


def test_a_killed_run_ends_what_it_has_started(tmp_path: Path) -> None:
    (tmp_path / "test_leaves.py").write_text(LEAVES.format(end="time.sleep(600)"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*RUN, tmp_path], stdout=subprocess.DEVNULL, env=environment, cwd=tmp_path) as run:
        eventually((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)
        run.send_signal(signal.SIGKILL)
    eventually(lambda: not alive(pid))

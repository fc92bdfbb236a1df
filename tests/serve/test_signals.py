"""Signals count from the first moment to the last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.exports import exported
from tests.serve.conftest import ROOT

ISOLATED = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
SERVE = (sys.executable, "-m", "yolo_assigner", "serve", "--port", "0", "--threads", "1", "--artifacts")
PATIENCE = 60.0


@contextmanager
def started(folder: Path, command: Sequence[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process that begins with signals blocked, as the image's entry point starts the service: none comes too soon.

    It leads a group of its own, and writes to ``log.txt``.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    try:
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def wait_for(folder: Path, words: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while words not in (folder / "log.txt").read_text():
        assert time.monotonic() < deadline, (folder / "log.txt").read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_all_else(tmp_path: Path, sign: signal.Signals) -> None:
    """Nothing is imported and nothing is said any more."""
    with started(tmp_path, [*SERVE, str(exported("assigner", "dense"))]) as process:
        process.send_signal(sign)
        assert first_line(process) == ""
        assert process.wait(PATIENCE) == 0
    assert (tmp_path / "log.txt").read_text() == ""


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.5, 1.0, 2.0])
def test_a_stop_at_any_moment(tmp_path: Path, seconds: float) -> None:
    with started(tmp_path, [*SERVE, str(exported("assigner", "dense"))]) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has namespaces of processes")
def test_a_stop_of_a_container_that_has_just_started(tmp_path: Path) -> None:
    """The system drops what the first process of a container neither handles nor blocks."""
    if subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode:
        pytest.skip("processes cannot be isolated here; it takes root and unshare")
    artifacts = str(exported("assigner", "dense"))
    command = [*ISOLATED, sys.executable, "-m", "deploy.entrypoint"]
    with started(tmp_path, command, YOLO_ASSIGNER_ARTIFACTS=artifacts, YOLO_ASSIGNER_PORT="0") as process:
        deadline = time.monotonic() + PATIENCE
        words: list[bytes] = []
        while b"serve" not in words:
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            for first in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                words = Path(f"/proc/{first}/cmdline").read_bytes().split(b"\0")
        os.kill(int(first), signal.SIGTERM)
        assert first_line(process) == ""
        assert process.wait(PATIENCE) == 0


def test_a_hangup_while_it_starts_is_kept(tmp_path: Path) -> None:
    with started(tmp_path, [*SERVE, str(exported("assigner", "dense"))]) as process:
        process.send_signal(signal.SIGHUP)
        assert first_line(process).startswith("serving on ")
        wait_for(tmp_path, "reloading is done")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert "not reloaded" not in (tmp_path / "log.txt").read_text()


def test_hangups_while_it_stops_change_nothing(tmp_path: Path) -> None:
    with started(tmp_path, [*SERVE, str(exported("assigner", "dense"))]) as process:
        assert first_line(process).startswith("serving on ")
        wait_for(tmp_path, "assigner is ready")
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < deadline
            process.send_signal(signal.SIGHUP)
            time.sleep(0.001)
        assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="engines have a process of their own on Linux only")
def test_a_hangup_of_the_group_leaves_the_engines_alone(tmp_path: Path) -> None:
    """As a terminal sends it when it is closed."""
    with started(tmp_path, [*SERVE, str(exported("assigner", "dense"))]) as process:
        assert first_line(process).startswith("serving on ")
        wait_for(tmp_path, "assigner is ready")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.killpg(process.pid, signal.SIGHUP)
        wait_for(tmp_path, "reloading is done")
        assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text() == children
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0

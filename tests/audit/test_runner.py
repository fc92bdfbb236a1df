"""The pool of processes: a process that dies, errors, and the end of the run, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.audit.shards import TASK, compute, plan
from tests.export.test_build_all import is_running, wait_until
from yolo_assigner.audit.runner import Manner, compute_shards, run_pool

ROOT = Path(__file__).parents[2]
# Runs a pool until it is killed; each process writes its number.
ENDLESS = """
import sys
from pathlib import Path

from tests.audit.shards import compute, plan
from yolo_assigner.audit.runner import run_pool

if __name__ == "__main__":
    print(list(run_pool(compute, plan(Path(sys.argv[1]), ["sleep"] * 2), 2)))
"""


def processes_of(folder: Path) -> list[int]:
    """The processes that wrote files; one that is killed may leave an empty one."""
    return [int(text) for path in folder.iterdir() if (text := path.read_text())]


def test_a_process_that_dies_spoils_no_shard_but_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a", "die", "b", "die once", "RuntimeError", *"cdef"]
    facts = compute_shards(TASK, plan(tmp_path, names), len(names), Manner(2))
    faults = {name: one.bad for name, one in zip(names, facts, strict=True) if one.bad}
    assert set(faults) == {"die", "RuntimeError"}
    assert faults["die"][0].fault.startswith("its process died twice")
    assert faults["RuntimeError"][0].fault.startswith("RuntimeError: no room; ")
    assert os.getpid() not in {one.process for one in facts}
    printed = capsys.readouterr().err
    assert "a worker died; trying " in printed
    assert "bad=2" in printed
    # Once more: what is there is not computed.
    good = [shard for shard, name in zip(plan(tmp_path, names), names, strict=True) if name not in faults]
    assert compute_shards(TASK, good, len(good), Manner()) == [one for one in facts if not one.bad]


def test_other_errors_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"):
        compute_shards(TASK, plan(tmp_path, ["a", "OSError", "sleep"]), 3, Manner(2))
    assert not any(map(is_running, processes_of(tmp_path)))


def test_leaving_the_pool_ends_its_processes(tmp_path: Path) -> None:
    with closing(run_pool(compute, plan(tmp_path, ["sleep", "a", "b"]), 2)) as outcomes:
        assert next(outcomes).facts
    assert not any(map(is_running, processes_of(tmp_path)))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_the_processes_end_with_their_owner(tmp_path: Path) -> None:
    script = tmp_path.with_suffix(".py")
    script.write_text(ENDLESS)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as owner:
        try:
            wait_until(lambda: len(processes_of(tmp_path)) == 2)
            processes = processes_of(tmp_path)
        finally:
            owner.kill()
    wait_until(lambda: not any(map(is_running, processes)))

"""The same files from Ray Data: a cluster of two CPUs, which the tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra audit")
pytest.importorskip("ray", reason="needs the extra ray")

import ray

from tests.audit.predictions import contents, mixed_folder
from tests.audit.shards import TASK, compute, plan
from tests.processes import nothing_left
from yolo_assigner.__main__ import main
from yolo_assigner.audit.ray_data import run_on_ray
from yolo_assigner.audit.runner import DIED_TWICE, Manner, compute_shards

pytestmark = pytest.mark.filterwarnings("default")  # Ray Data warns of its own options


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with nothing_left():
        ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
        yield
        ray.shutdown()


def test_assign_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed_folder(tmp_path / "maps")
    monkeypatch.chdir(tmp_path)  # the tasks' folder is another one
    outputs = []
    for output, *words in (("here",), ("there", "--ray")):
        assert main(["assign", "--input", "maps", "--output", output, *words]) == 1
        outputs.append(capsys.readouterr().out.replace(output, ""))
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert outputs[0] == outputs[1]


def test_audit_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed_folder(tmp_path / "maps")
    monkeypatch.chdir(tmp_path)
    for out, *words in (("here",), ("there", "--ray", "--workers", "1")):
        assert main(["audit", "--predictions", "maps", "--out", out, *words]) == 1
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_a_process_that_dies_spoils_no_shard_but_its_own(tmp_path: Path) -> None:
    names = ["a", "die", "b", "die once", "RuntimeError", "c"]
    facts = compute_shards(TASK, plan(tmp_path, names), len(names), Manner(2, ray=True))
    faults = {name: one.bad[0].fault for name, one in zip(names, facts, strict=True) if one.bad}
    assert set(faults) == {"die", "RuntimeError"}
    assert faults["die"] == DIED_TWICE
    assert os.getpid() not in {one.process for one in facts}
    assert len(list(tmp_path.iterdir())) == len(names) - 1  # nothing is left beside; no file of RuntimeError


def test_other_errors_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"):
        list(run_on_ray(compute, plan(tmp_path, ["a", "OSError"]), 2))

"""Models that cannot be loaded, beside one that can."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from tests.serve.conftest import (
    Live,
    Reply,
    assigner_inputs,
    binary_rows,
    copy_as,
    json_rows,
    loss_inputs,
    start,
    stop,
)
from tests.serve.test_operation import free_port, samples
from tests.serve.test_v1 import BATCH, maps, pack
from tests.serve.toy_contract import CONTRACT
from yolo_assigner.export.contract import file_hash
from yolo_assigner.serve.errors import ModelFailedError, NotFoundError
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.loading import open_artifacts
from yolo_assigner.serve.inference.registry import ModelRegistry
from yolo_assigner.serve.inference.runners.base import HOST, RunnerError
from yolo_assigner.serve.inference.runners.choice import RunnerOptions
from yolo_assigner.serve.process.supervisor import RemoteModel

CPU = RunnerOptions("onnxruntime", HOST, threads=1)
UNREADABLE = "assigner.json cannot be read as a contract"


@pytest.fixture
def folder(artifacts_dir: Path, tmp_path: Path) -> Path:
    """A copy of the exported models, to be damaged."""
    return Path(shutil.copytree(artifacts_dir, tmp_path / "copy"))


@pytest.fixture
def two(assigner_dir: Path, tmp_path: Path) -> Path:
    """A folder with two models that load soon, to be damaged: the assigner, and the same as ``other``."""
    copy_as(assigner_dir, tmp_path, "assigner", "other")
    return tmp_path


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def no_graph(folder: Path, name: str = "loss_grad") -> None:
    """Damage a model but not its hash, so that only the runtime notices."""
    (folder / f"{name}.onnx").write_bytes(b"\xff" * 100)
    edit(folder / f"{name}.json", sha256=file_hash(folder / f"{name}.onnx"))


def refused(reply: Reply, *words: str) -> None:
    assert reply.status == 503
    assert "Retry-After" not in reply.headers
    for word in words:
        assert word in reply.error


def index(live: Live, **body: Any) -> dict[str, tuple[str, str]]:
    entries = live.send("POST", "/v2/repository/index", body).json
    return {entry["name"]: (entry["state"], entry["reason"]) for entry in entries}


@pytest.mark.parametrize("engines", ["--engine-process", "--no-engine-process"])
def test_a_server_with_damaged_models(folder: Path, engines: str, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "assigner.json").write_text("{")
    no_graph(folder)
    port = free_port()
    live = start("--artifacts", folder, engines, "--metrics-port", str(port))
    try:
        listed = index(live)
        assert list(listed) == ["assigner", "loss", "loss_grad"]
        assert listed["loss"] == ("READY", "")
        assert {name: state for name, (state, _) in listed.items() if name != "loss"} == {
            "assigner": "UNAVAILABLE",
            "loss_grad": "UNAVAILABLE",
        }
        assert UNREADABLE in listed["assigner"][1]
        assert list(index(live, ready=True)) == ["loss"]
        for name in ("assigner", "loss_grad"):
            for path in ("/ready", "/versions/1/ready", "", "/config", "/stats"):
                refused(live.send("GET", f"/v2/models/{name}{path}"), f"model '{name}' cannot", listed[name][1])
            refused(live.infer(name, {"inputs": json_rows(loss_inputs())}), f"model '{name}' cannot", listed[name][1])
        check_the_healthy_one(live)
        counted = samples(port)
        assert counted["yolo_assigner_models_failed", ()] == 2
        assert counted["yolo_assigner_models_ready", ()] == 1
        reasons = {labels[0]: value for (name, labels), value in counted.items() if name.endswith("failures_total")}
        assert reasons["reason", "model_failed"] > 0
        assert ("reason", "busy") not in reasons
    finally:
        assert stop(live) == 0
    log = capfd.readouterr().err
    for name, (_, reason) in listed.items():
        said = [line for line in log.splitlines() if f"model {name} cannot be loaded" in line]
        assert len(said) == (name != "loss")
        assert all("ERROR" in line and reason in line and "reload it: POST /v2" in line for line in said)


def check_the_healthy_one(live: Live) -> None:
    """Use it by both APIs; v1 chooses it although a damaged model comes before it by name."""
    rows, blob = binary_rows(loss_inputs())
    assert live.infer("loss", {"inputs": rows}, blob).status == 200
    assert live.send("GET", "/v2/models/loss/ready").status == 200
    raw = {"feats": [pack(feat) for feat in maps()], "batch": BATCH}
    assert live.send("POST", "/v1/loss", raw).json["model"] == "loss"
    assert live.send("POST", "/v1/assign", raw).json["model"] == "loss"
    sums = {"workers": [[[1.0, 2.0, 3.0, 4.0]]]}
    assert live.send("POST", "/v1/reduce", sums).json["model"] == "loss"
    assert live.send("GET", "/openapi.json").status == 200
    arrays = assigner_inputs()
    decoded = {
        "pd_scores": pack(arrays["pd_scores"]),
        "pd_bboxes": pack(arrays["pd_bboxes"]),
        "imgsz": [64, 64],
        "batch": BATCH,
    }
    refused(live.send("POST", "/v1/assign", decoded), "no model of kind assigner that can be loaded", UNREADABLE)
    refused(live.send("POST", "/v1/assign", decoded | {"model": "assigner"}), UNREADABLE)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda folder: (folder / "assigner.json").write_text("{"),
    "deep JSON": lambda folder: (folder / "assigner.json").write_text("[" * 100_000),
    "no contract": lambda folder: (folder / "assigner.json").write_text("[1]"),
    "a broken link": lambda folder: relink(folder / "assigner.json"),
    "a FIFO for a contract": lambda folder: make_fifo(folder / "assigner.json"),
    "a FIFO for a model": lambda folder: make_fifo(folder / "assigner.onnx"),
    "file is no text": lambda folder: edit(folder / "assigner.json", file=5),
    "hyperparameters are no object": lambda folder: edit(folder / "assigner.json", hyperparameters=[]),
    "strides are no numbers": lambda folder: edit(folder / "assigner.json", hyperparameters={"strides": ["8"]}),
    "another name": lambda folder: edit(folder / "assigner.json", name="other"),
    "no file": lambda folder: (folder / "assigner.onnx").unlink(),
    "a cut file": lambda folder: (folder / "assigner.onnx").write_bytes(b"x"),
    "no graph": lambda folder: no_graph(folder, "assigner"),
    "an unknown type": lambda folder: edit(
        folder / "assigner.json", inputs=[{"name": "x", "dtype": "float99", "axes": ["B"]}]
    ),
}


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


async def load(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Load the models of a folder; return the names of the ready ones, and the failures."""
    registry = open_artifacts(folder, CPU)
    try:
        await registry.load()
        assert registry.ready
        return [name for name, model in registry.models.items() if model.ready], registry.failures
    finally:
        registry.close()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_any_damage_is_the_models_alone(two: Path, damage: Callable[[Path], object]) -> None:
    damage(two)
    ready, failures = asyncio.run(load(two))
    assert ready == ["other"]
    assert list(failures) == ["assigner"]
    assert failures["assigner"]


def test_an_old_runtime_is_refused_for_every_model(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.2.3")
    with pytest.raises(RunnerError, match=r"^ONNX Runtime 1\.2\.3 is not supported, .*pip install 'onnxruntime>="):
        asyncio.run(load(two))


def test_why_there_is_no_model_of_a_kind() -> None:
    """The error names a failed model that is, or may be, of that kind."""
    model = RemoteModel(CONTRACT, BatchLimits())

    def some(kind: str, **failures: str) -> list[RemoteModel]:
        return ModelRegistry([model], failures).some(f"kind {kind}", lambda contract: contract.kind == kind)

    assert some("assigner", other="no JSON") == [model]
    for failures in ({"toy": "no graph"}, {"toy": "no graph", "other": "no JSON"}):
        with pytest.raises(ModelFailedError) as caught:
            some("assigner", **failures)
        assert all(f"{name}: {reason}" in str(caught.value) for name, reason in failures.items())
    with pytest.raises(NotFoundError, match="no model of kind loss; export one"):
        some("loss", toy="no graph")
    with pytest.raises(ModelFailedError, match=r"kind loss that can be loaded \(other: no JSON\)"):
        some("loss", toy="no graph", other="no JSON")

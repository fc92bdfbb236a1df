"""A served detector with two branches and plain distances: both losses, and the third term by its name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.exports import END_TO_END, TINY, exported, exported_by_command
from tests.serve.conftest import Live, Reply, binary_rows, loss_inputs, start, stop
from yolo_assigner.export.contract import load_contract
from yolo_assigner.serve.client import AssignerClient
from yolo_assigner.serve.inference.runners.base import Device
from yolo_assigner.serve.inference.runners.torch_module import TorchRunner
from yolo_assigner.serve.inference.runners.warm_up import warm_up
from yolo_assigner.serve.v1.schemas import LossReply, ReduceReply
from yolo_assigner.serve.wire.dtypes import Array

BATCH: dict[str, Any] = {"batch_idx": [1, 0], "cls": [0, 0], "bboxes": [[0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.4, 0.4]]}


@pytest.fixture(scope="module")
def detector() -> Path:
    return exported("detector_loss", "sparse", **END_TO_END)


@pytest.fixture(scope="module")
def server(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Serves the detector, and a loss without distributions."""
    folder = tmp_path_factory.mktemp("served")
    for source, name in ((detector, "detector_loss"), (exported_by_command(TINY), "tiny")):
        for suffix in (".onnx", ".json"):
            shutil.copy(source / f"{name}{suffix}", folder)
    live = start("--artifacts", folder)
    yield live
    assert stop(live) == 0


def inputs() -> dict[str, Array]:
    boxes = {name: array for name, array in loss_inputs(side=64).items() if not name.startswith("feat_")}
    return {"images": np.random.default_rng(0).uniform(0, 1, (2, 3, 64, 96)).astype(np.float32)} | boxes


def computed(detector: Path) -> dict[str, Array]:
    session = ort.InferenceSession(detector / "detector_loss.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs()), strict=True))


def ok(reply: Reply) -> Any:
    assert reply.status == 200, reply.body
    return reply.json


def test_all_outputs_of_both_branches_come(server: Live, detector: Path) -> None:
    want = computed(detector)
    names = [name for name in want if name != "target_scores"]
    rows, blob = binary_rows(inputs())
    got = {row["name"]: row["data"] for row in ok(server.infer("detector_loss", {"inputs": rows}, blob))["outputs"]}
    assert list(got) == names
    for name in names:
        np.testing.assert_allclose(got[name], want[name].ravel(), rtol=1e-4, atol=1e-4)
    # The client names what it wants; another share of the branches needs no other model.
    with AssignerClient(server.url) as client:
        parts = client.infer("detector_loss", inputs(), ["loss", "one2many_loss", "one2one_loss"])
    assert parts["loss"] == pytest.approx(0.45 * parts["one2many_loss"] + 0.55 * parts["one2one_loss"], rel=1e-5)


def test_the_torch_runner_gives_them_too(detector: Path) -> None:
    contract = load_contract(detector / "detector_loss.json")
    runner = TorchRunner(detector / "detector_loss.onnx", contract, Device("cpu"))
    warm_up(runner, contract)
    want = computed(detector)
    for name, array in runner.infer(inputs(), list(want)).items():
        np.testing.assert_allclose(array, want[name], rtol=1e-3, atol=1e-3)


def test_typed_json_names_the_third_term(server: Live) -> None:
    maps = [np.abs(np.random.default_rng(side).normal(1, 1, (2, 5, side, side))).tolist() for side in (8, 4)]
    reply = ok(server.send("POST", "/v1/loss", {"feats": maps, "batch": BATCH}))
    LossReply.model_validate(reply)
    assert list(reply["loss_items"]) == ["box", "cls", "l1"]
    assert [list(sums) for sums in reply["image_sums"]] == [["box", "cls", "l1", "target_scores"]] * 2
    assert reply["loss_items"]["l1"] > 0
    reduced = ok(server.send("POST", "/v1/reduce", {"workers": [reply["image_sums"]], "model": "tiny"}))
    ReduceReply.model_validate(reduced)
    assert reduced["loss_items"] == pytest.approx(reply["loss_items"], rel=1e-6)
    # Rows, and the name that every third term had.
    renamed = [{"dfl" if name == "l1" else name: value for name, value in sums.items()} for sums in reply["image_sums"]]
    for workers in ([[list(sums.values()) for sums in renamed]], [renamed]):
        assert ok(server.send("POST", "/v1/reduce", {"workers": workers, "model": "tiny"})) == reduced


def test_each_branch_of_a_shared_batch_is_reduced_by_itself(server: Live, detector: Path) -> None:
    want = computed(detector)
    for branch, sums in (("one2one_loss", "image_sums"), ("one2many_loss", "one2many_image_sums")):
        workers = [[row.tolist()] for row in want[sums]]  # two workers with an image each
        reply = ok(server.send("POST", "/v1/reduce", {"workers": workers, "model": "detector_loss"}))
        assert reply["loss"] == pytest.approx(float(want[branch]), rel=1e-5)


def test_a_detector_is_no_model_for_maps(server: Live) -> None:
    reply = server.send("POST", "/v1/loss", {"model": "detector_loss", "feats": [], "batch": BATCH})
    assert (reply.status, reply.error) == (400, "model 'detector_loss' is not of kind loss; those are tiny")


def test_sums_of_another_kind_of_head_are_refused(live: Live) -> None:
    sums = {"box": 1, "cls": 2, "l1": 3, "target_scores": 4}
    reply = live.send("POST", "/v1/reduce", {"workers": [[sums]], "model": "loss"})
    assert reply.status == 400
    assert "workers has sums with l1, but the terms of model 'loss' are box, cls, dfl; name" in reply.error
    assert live.send("POST", "/v1/reduce", {"workers": [[sums | {"dfl": 3}]]}).status == 400

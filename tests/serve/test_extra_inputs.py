"""A served loss with class weights and regions to ignore, against the torch module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.exports import EVERY_INPUT, exported
from tests.serve.conftest import Live, json_rows, loss_inputs, start, stop
from tests.serve.peak import peak_growth
from yolo_assigner.export.contract import Contract, load_contract
from yolo_assigner.serve.client import AssignerClient, ServerError
from yolo_assigner.serve.detection.collate import class_inputs
from yolo_assigner.serve.detection.validate import check_inputs
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.memory_estimate import estimate_memory, memory_bound
from yolo_assigner.serve.inference.runners.base import Device
from yolo_assigner.serve.inference.runners.torch_module import TorchRunner
from yolo_loss import DetectionLoss, LossResult
from yolo_loss.collate import class_inputs_of

BATCH: dict[str, Any] = {"batch_idx": [1, 0], "cls": [2.0, 0.0], "bboxes": [[0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.4, 0.4]]}
WEIGHTS = [[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]]
REGIONS: dict[str, Any] = {
    "ignore_idx": [1, 1, 0],
    "ignore_bboxes": [[0.8, 0.7, 0.4, 0.6], [0.1, 0.1, 0.2, 0.2], [0.9] * 4],
}
FURTHER: dict[str, Any] = {"class_weights": WEIGHTS, **REGIONS}


@pytest.fixture(scope="module")
def artifacts() -> Path:
    return exported("loss", "sparse", **EVERY_INPUT)


@pytest.fixture(scope="module")
def server(artifacts: Path) -> Iterator[Live]:
    live = start("--artifacts", artifacts)
    yield live
    assert stop(live) == 0


@pytest.fixture
def contract(artifacts: Path) -> Contract:
    return load_contract(artifacts / "loss.json")


def maps() -> list[Any]:
    arrays = loss_inputs()
    return [arrays[f"feat_{level}"] for level in range(3)]


def expected(batch: dict[str, Any]) -> LossResult:
    return DetectionLoss(3, class_loss="varifocal").evaluate([torch.from_numpy(feat) for feat in maps()], batch)


def named_inputs() -> dict[str, Any]:
    return loss_inputs() | class_inputs(FURTHER, 2, (64, 64))


def test_the_client_sends_them(server: Live) -> None:
    want = expected(BATCH | FURTHER)
    assert not torch.equal(want.image_sums, expected(BATCH).image_sums)
    with AssignerClient(server.url) as client:
        got = client.loss(maps(), BATCH | FURTHER)
        np.testing.assert_allclose(got.image_sums, want.image_sums, rtol=1e-5)
        np.testing.assert_allclose(got.loss, want.loss, rtol=1e-5)
        with pytest.raises(ServerError, match="needs input class_weights, ignore_bboxes, mask_ignore"):
            client.loss(maps(), BATCH)
        with pytest.raises(ValueError, match=r"class_weights\[0\] is -1.0; give finite numbers, 0 or more"):
            client.loss(maps(), BATCH | FURTHER | {"class_weights": [-1, 1, 1]})
        with pytest.raises(ValueError, match=r"ignore_idx\[0\] is 2, and the number of images is 2"):
            client.loss(maps(), BATCH | {"ignore_idx": [2], "ignore_bboxes": [[0.5] * 4]})


@pytest.mark.parametrize("further", [{}, FURTHER, {"class_weights": WEIGHTS}, REGIONS])
def test_typed_json_takes_them(server: Live, further: dict[str, Any]) -> None:
    body = {"feats": [feat.tolist() for feat in maps()], "batch": BATCH | further}
    reply = server.send("POST", "/v1/loss", body)
    assert reply.status == 200, reply.body
    want = expected(BATCH | further)
    assert reply.json["loss"] == pytest.approx(want.loss.item(), rel=1e-5)
    got = [[sums[name] for name in ("box", "cls", "dfl", "target_scores")] for sums in reply.json["image_sums"]]
    np.testing.assert_allclose(got, want.image_sums, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"class_weights": [[1.0, 1.0, 1.0]]}, "class_weights has shape (1, 3); give (3,)"),
        ({"class_weights": [[-1.0, 1, 1], [1, 1, 1]]}, "class_weights.0.0"),
        ({"ignore_idx": [0]}, "batch has ignore_idx alone"),
        ({"ignore_idx": [7], "ignore_bboxes": [[0.5] * 4]}, "ignore_idx[0] is 7, and the number of images is 2"),
    ],
)
def test_typed_json_refuses(server: Live, changed: dict[str, Any], text: str) -> None:
    reply = server.send("POST", "/v1/loss", {"feats": [feat.tolist() for feat in maps()], "batch": BATCH | changed})
    assert 400 <= reply.status < 500
    assert text in reply.error


def test_the_protocol_checks_them(server: Live) -> None:
    inputs = named_inputs()
    inputs["class_weights"] = -inputs["class_weights"]
    reply = server.infer("loss", {"inputs": json_rows(inputs)})
    assert (reply.status, reply.error) == (400, "class_weights[0, 0] is -1.0; give finite numbers, 0 or more")
    inputs = named_inputs()
    inputs["mask_ignore"] = inputs["mask_ignore"][:, :1]
    reply = server.infer("loss", {"inputs": json_rows(inputs)})
    assert reply.status == 400
    assert "axis I (regions to ignore) is 1 in input 'mask_ignore'" in reply.error


def test_models_without_them_refuse_them(live: Live) -> None:
    with AssignerClient(live.url) as client, pytest.raises(ServerError, match="has no input 'class_weights'"):
        client.loss(maps(), BATCH | FURTHER)


def test_numpy_pads_as_torch_does() -> None:
    ours = class_inputs(FURTHER, 2, (64, 96), 3)
    theirs = class_inputs_of(FURTHER, torch.zeros(1), (64, 96), 2, 3)
    assert list(ours) == list(theirs._fields)
    for name, tensor in theirs._asdict().items():
        np.testing.assert_array_equal(ours[name], tensor)
    assert class_inputs(BATCH, 2, (64, 96), 3) == {}
    for_all = class_inputs({"class_weights": [1, 2, 3]}, 2, (64, 96))
    np.testing.assert_array_equal(for_all["class_weights"], [[1, 2, 3]] * 2)


def test_the_torch_runner(artifacts: Path, contract: Contract) -> None:
    runner = TorchRunner(artifacts / "loss.onnx", contract, Device("cpu"))
    runner.load()
    got = runner.infer(check_inputs(contract, loss_inputs() | class_inputs(FURTHER, 2, (64, 64))), ["image_sums"])
    truth = loss_inputs()
    centre = (truth["gt_bboxes"][..., :2] + truth["gt_bboxes"][..., 2:]) / 2 / 64
    size = (truth["gt_bboxes"][..., 2:] - truth["gt_bboxes"][..., :2]) / 64
    batch = {
        "batch_idx": np.repeat([0, 1], 3),
        "cls": truth["gt_labels"].reshape(-1),
        "bboxes": np.concatenate((centre, size), axis=-1).reshape(-1, 4),
    }
    np.testing.assert_allclose(got["image_sums"], expected(batch | FURTHER).image_sums, rtol=1e-4)


def test_regions_count_in_the_memory_estimate(contract: Contract) -> None:
    few, many = named_inputs(), named_inputs()
    many["ignore_bboxes"] = np.zeros((2, 1002, 4), np.float32)
    many["mask_ignore"] = np.zeros((2, 1002, 1), bool)
    anchors = 64 + 16 + 4
    added = 2 * 1000 * anchors * 22
    assert memory_bound(contract, many) - memory_bound(contract, few) == added
    assert estimate_memory(contract, many).nbytes - estimate_memory(contract, few).nbytes == added


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system counts in other units")
def test_the_estimate_of_many_regions_is_what_they_need(artifacts: Path, contract: Contract, tmp_path: Path) -> None:
    """Eight images of 200 regions: what the loss needs for one is little beside it."""
    inputs = loss_inputs(images=8, slots=1, side=320) | class_inputs({"class_weights": np.ones((8, 3))}, 8, (320, 320))
    inputs["ignore_bboxes"] = np.tile(np.array([0, 0, 320, 320], np.float32), (8, 200, 1))
    inputs["mask_ignore"] = np.ones((8, 200, 1), bool)
    taken = peak_growth(artifacts / "loss.onnx", check_inputs(contract, inputs), "image_sums", tmp_path)
    estimate = estimate_memory(contract, inputs).nbytes
    assert 0.6 * estimate < taken < 1.1 * estimate


def test_a_weight_that_is_no_number_is_refused(contract: Contract) -> None:
    inputs = named_inputs()
    inputs["class_weights"] = inputs["class_weights"] + np.array([[0, 0, 0], [0, 0, np.nan]], np.float32)
    with pytest.raises(BadRequestError, match=r"class_weights\[1, 2\] is nan"):
        check_inputs(contract, inputs)

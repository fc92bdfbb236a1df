"""``/v1/explain``, the infer route and the client on a live server, against torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.exports import exported
from tests.serve.conftest import Live, json_rows, loss_inputs, start, stop
from tests.serve.peak import peak_growth
from tests.serve.test_v1 import pack
from yolo_assigner.export.contract import load_contract
from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_loss_inputs
from yolo_assigner.serve.client import AssignerClient, ServerError
from yolo_assigner.serve.detection.results import Explanation
from yolo_assigner.serve.inference.memory_estimate import estimate_memory, memory_bound
from yolo_assigner.serve.inference.runners.base import Device
from yolo_assigner.serve.inference.runners.torch_module import TorchRunner
from yolo_assigner.serve.v1.schemas import ExplainReply
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.explain import Reason, explain_document, explain_loss
from yolo_loss.explain.document import dump_document
from yolo_loss.explain.explain import explain_padded, explanation_outputs
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(2, 20, pyramid(64, 96, STRIDES), 3)
SMALL_LIMIT = 2**20


@pytest.fixture(scope="module")
def artifacts() -> Path:
    return exported("explain", "sparse")


@pytest.fixture(scope="module")
def server(artifacts: Path) -> Iterator[Live]:
    live = start("--artifacts", artifacts, "--max-work-bytes", str(8 * SMALL_LIMIT))
    yield live
    assert stop(live) == 0


def sample() -> tuple[list[Tensor], dict[str, Any]]:
    feats, *truth = sample_loss_inputs(CASE, STRIDES, 16, 0)
    batch = ragged_batch(GroundTruth(*truth), (64, 96))
    return feats, dict(batch)


def as_json(feats: list[Tensor], batch: dict[str, Any]) -> dict[str, Any]:
    columns = {name: column.reshape(len(column), -1).squeeze(-1).tolist() for name, column in batch.items()}
    return {"feats": [feat.tolist() for feat in feats], "batch": columns}


def assert_alike(got: Any, want: Any, where: str = "") -> None:
    """Two documents are equal but for the last digits of numbers."""
    if isinstance(want, dict):
        assert set(got) == set(want), where
        for key, value in want.items():
            # Candidates whose metrics are equal but for rounding may be swapped.
            if key not in ("rank", "model", "parameters"):
                assert_alike(got[key], value, f"{where}.{key}")
    elif isinstance(want, list):
        assert len(got) == len(want), where
        for place, value in enumerate(want):
            assert_alike(got[place], value, f"{where}[{place}]")
    elif isinstance(want, float):
        assert got == pytest.approx(want, rel=1e-4, abs=1e-6), where
    else:
        assert got == want, where


def test_the_client_explains_as_torch_does(server: Live) -> None:
    feats, batch = sample()
    want = explanation_outputs(explain_loss(DetectionLoss(3), feats, batch))
    with AssignerClient(server.url) as client:
        got = client.explain(feats, batch)
        assert set(got.reason.flatten().tolist()) >= {Reason.ASSIGNED, Reason.INVALID, Reason.NO_ANCHOR}
        for name in Explanation._fields:
            if name != "pair_rank":  # candidates whose metrics are equal but for rounding may be swapped
                array = getattr(got, name)
                np.testing.assert_allclose(array, want[name].numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
        assert got.truth_loss.sum() + got.background_loss.sum() == pytest.approx(float(got.loss), rel=1e-5)
        with pytest.raises(ServerError, match="no model 'loss'"):
            client.explain(feats, batch, model="loss")


def test_v1_gives_the_document_of_the_library(server: Live) -> None:
    feats, batch = sample()
    reply = server.send("POST", "/v1/explain", as_json(feats, batch))
    assert reply.status == 200, reply.body
    ExplainReply.model_validate(reply.json)
    document = reply.json
    assert document.pop("tensors") == {}
    assert document["model"] == "explain"
    want = json.loads(dump_document(explain_document(DetectionLoss(3), feats, batch)))
    assert {key: document["parameters"][key] for key in want["parameters"]} == want["parameters"]
    assert_alike(document, want)
    reasons = [truth["reason"] for image in document["images"] for truth in image["ground_truths"]]
    assert len(reasons) == len(batch["cls"]), "padding is left out"
    assert "no_anchor" in reasons
    missed = next(t for t in document["images"][0]["ground_truths"] if t["reason"] == "no_anchor")
    assert f"min_box_side={missed['helping_side']:g}" in missed["remedy"]


def test_pairs_and_tensors_are_sent_as_they_are_asked_for(server: Live) -> None:
    feats, batch = sample()
    request = as_json(feats, batch)
    plain = server.send("POST", "/v1/explain", {**request, "pairs": False, "outputs": ["weak", "truth_loss"]}).json
    assert [image["pairs"] for image in plain["images"]] == [None, None]
    assert np.array(plain["tensors"]["truth_loss"]).shape == np.array(plain["tensors"]["weak"]).shape
    full = server.send("POST", "/v1/explain", request).json
    assert [image["ground_truths"] for image in full["images"]] == [image["ground_truths"] for image in plain["images"]]


def test_an_image_without_boxes(server: Live) -> None:
    feats, _ = sample()
    nothing: dict[str, list[Any]] = {"batch_idx": [], "cls": [], "bboxes": []}
    reply = server.send("POST", "/v1/explain", {"feats": [feat.tolist() for feat in feats], "batch": nothing})
    document = ExplainReply.model_validate(reply.json)
    assert document.reasons == {}
    assert [image.ground_truths for image in document.images] == [[], []]
    assert document.loss.total is not None
    assert document.loss.total > 0
    assert document.loss.total == pytest.approx(sum(image.loss.background or 0 for image in document.images), rel=1e-4)


def test_numbers_that_are_not_finite_are_null(server: Live) -> None:
    feats, batch = sample()
    feats[0][0, 65] = float("inf")
    reply = server.send(
        "POST", "/v1/explain", {**as_json(feats, batch), "feats": [pack(feat.numpy()) for feat in feats]}
    )
    assert reply.status == 200, reply.body
    ExplainReply.model_validate(reply.json)
    assert reply.json["loss"]["total"] is None


def test_examples_and_description(server: Live) -> None:
    page = server.send("GET", "/openapi.json").json
    entry = page["paths"]["/v1/explain"]["post"]
    (example,) = entry["requestBody"]["content"]["application/json"]["examples"].values()
    reply = ExplainReply.model_validate(server.send("POST", "/v1/explain", example["value"]).json)
    assert [truth.reason for truth in reply.images[0].ground_truths][1] == "no_anchor"
    assert entry["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/ExplainReply")


def test_infer_lists_pairs(server: Live) -> None:
    reply = server.infer("explain", {"inputs": json_rows(loss_inputs())})
    assert reply.status == 200, reply.body
    shapes = {row["name"]: row["shape"] for row in reply.json["outputs"]}
    metadata = server.send("GET", "/v2/models/explain").json
    assert set(shapes) == {row["name"] for row in metadata["outputs"]}
    pairs = {tuple(shape) for name, shape in shapes.items() if name.startswith("pair_")}
    assert len(pairs) == 1
    assert shapes["num_candidates"] == [2, 3, 3]
    assert next(row["shape"] for row in metadata["outputs"] if row["name"] == "pair_iou") == [-1]


def test_refusals(server: Live) -> None:
    feats, batch = sample()
    request = as_json(feats, batch)
    for body, status, words in (
        ({**request, "model": "none"}, 404, "no model 'none'"),
        ({**request, "feats": request["feats"][:2]}, 400, "feats"),
        ({**request, "pairs": "yes"}, 400, "pairs: "),
        ({**request, "outputs": ["fg_mask"]}, 400, "fg_mask"),
        ({**request, "images": [[[[0.5]]]]}, 404, "no model of kind detector_explain"),
    ):
        reply = server.send("POST", "/v1/explain", body)
        assert reply.status == status, reply.body
        assert words in reply.error
    reply = server.send("POST", "/v1/loss", request)
    assert (reply.status, "no model of kind loss" in reply.error) == (404, True)


def test_a_request_that_needs_too_much_memory_is_refused(server: Live) -> None:
    feats, _ = sample()
    count = 400  # boxes around all anchors, all alike
    batch = {"batch_idx": [0] * count, "cls": [0] * count, "bboxes": [[0.5, 0.5, 1.0, 1.0]] * count}
    reply = server.send("POST", "/v1/explain", {"feats": [feat.tolist() for feat in feats], "batch": batch})
    assert reply.status == 413, reply.body
    assert "--max-work-bytes" in reply.error


def test_the_estimate_counts_pairs_and_ground_truths(artifacts: Path) -> None:
    contract = load_contract(artifacts / "explain.json")
    few, many = loss_inputs(slots=3), loss_inputs(slots=300)
    for inputs in (few, many):
        assert 0 < estimate_memory(contract, inputs).nbytes <= memory_bound(contract, inputs)
    far = many | {"gt_bboxes": many["gt_bboxes"] + 10_000}  # no pairs, but the ground truths are compared
    assert estimate_memory(contract, far).nbytes > 2 * 300 * 300 * 8


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system counts in other units")
@pytest.mark.parametrize(("side", "slots", "shift"), [(640, 40, 0.0), (64, 1500, 1e4)], ids=["pairs", "truths"])
def test_the_estimate_is_not_too_low(artifacts: Path, tmp_path: Path, side: int, slots: int, shift: float) -> None:
    inputs = loss_inputs(images=1, slots=slots, side=side)
    inputs["gt_bboxes"][:] = np.array((0, 0, side, side)) + shift
    inputs["mask_gt"][:] = True
    taken = peak_growth(artifacts / "explain.onnx", inputs, "pair_weight", tmp_path)
    estimate = estimate_memory(load_contract(artifacts / "explain.json"), inputs).nbytes
    assert 0.4 * estimate < taken < 1.1 * estimate


def test_torch_runner_gives_the_same(artifacts: Path) -> None:
    contract = load_contract(artifacts / "explain.json")
    runner = TorchRunner(artifacts / "explain.onnx", contract, Device("cpu", 0))
    runner.load()
    inputs = loss_inputs()
    feats = [torch.from_numpy(inputs[f"feat_{level}"]) for level in range(3)]
    truth = GroundTruth(*(torch.from_numpy(inputs[name]) for name in GroundTruth._fields))
    want = explanation_outputs(explain_padded(DetectionLoss(3), join_predictions(feats, STRIDES, 3, 16), truth))
    got = runner.infer(inputs, [spec.name for spec in contract.outputs])
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name].numpy(), err_msg=name)
    runner.close()

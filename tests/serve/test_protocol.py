"""``POST /v2/models/{model}/infer`` with both forms of the protocol's client library, against a live server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch

from tests.serve.callers import Caller
from tests.serve.conftest import Live, assigner_inputs, binary_rows, json_rows, loss_inputs
from yolo_assigner.serve.wire.dtypes import Array
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.predictions import join_predictions

DEFAULTS = {
    "loss": ["loss", "loss_items", "image_sums"],
    "loss_grad": ["loss", "loss_items", "image_sums", "grad_feat_0", "grad_feat_1", "grad_feat_2"],
    "assigner": [],
}
TARGETS = ["target_labels", "target_bboxes", "fg_mask", "target_gt_idx", "target_weights"]


def direct(artifacts_dir: Path, model: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """The same file in ONNX Runtime, without a server."""
    session = onnxruntime.InferenceSession(artifacts_dir / f"{model}.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    if "anc_points" in arrays:  # the file has an axis for the points of each image
        arrays = arrays | {"anc_points": arrays["anc_points"][np.newaxis]}
    return dict(zip(names, session.run(names, arrays), strict=True))


def inputs_of(model: str) -> dict[str, Array]:
    return assigner_inputs() if model == "assigner" else loss_inputs()


@pytest.mark.parametrize("model", DEFAULTS)
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_results_are_those_of_the_engine(
    caller: Caller, artifacts_dir: Path, model: str, binary_in: bool, binary_out: bool
) -> None:
    arrays = inputs_of(model)
    expected = direct(artifacts_dir, model, arrays)
    reply = caller.ask(model, arrays, list(expected), binary_in=binary_in, binary_out=binary_out)
    for name, array in expected.items():
        given = reply.as_numpy(name)
        assert given.dtype == array.dtype
        np.testing.assert_array_equal(given, array, err_msg=name)
    assert expected["fg_mask"].any()  # a comparison of nothing but background would prove little


@pytest.mark.parametrize("model", DEFAULTS)
def test_no_outputs_named_gives_all_but_the_heavy(caller: Caller, model: str) -> None:
    arrays = inputs_of(model)
    names = [row["name"] for row in caller.ask(model, arrays).get_response()["outputs"]]
    assert set(names) == {*DEFAULTS[model], *TARGETS}


@pytest.mark.parametrize("slots", [3, 0])
def test_gradients_are_those_of_autograd(caller: Caller, slots: int) -> None:
    """Of the criterion in torch, by the maps. Without ground truth there are still those of the class term."""
    arrays = loss_inputs(slots=slots)
    reply = caller.ask("loss_grad", arrays, ["loss", *(f"grad_feat_{level}" for level in range(3))])
    feats = [torch.from_numpy(arrays[f"feat_{level}"]).requires_grad_() for level in range(3)]
    truth = GroundTruth(*(torch.from_numpy(arrays[name]) for name in ("gt_labels", "gt_bboxes", "mask_gt")))
    predictions = join_predictions(feats, (8.0, 16.0, 32.0), num_classes=3, reg_max=16)
    loss = DetectionLoss(num_classes=3).from_padded(predictions, truth).loss
    loss.backward()
    np.testing.assert_allclose(reply.as_numpy("loss"), loss.item(), rtol=1e-6)
    for level, feat in enumerate(feats):
        assert feat.grad is not None
        expected = feat.grad.numpy()
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(reply.as_numpy(f"grad_feat_{level}"), expected, rtol=1e-4, atol=1e-6)


def test_only_the_requested_come_in_the_requested_order(caller: Caller) -> None:
    wanted = ["target_weights", "loss", "target_scores"]
    reply = caller.ask("loss", loss_inputs(), wanted, request_id="seven").get_response()
    assert [row["name"] for row in reply["outputs"]] == wanted
    assert (reply["model_name"], reply["model_version"], reply["id"]) == ("loss", "1", "seven")


def test_each_output_is_sent_in_the_requested_form(live: Live) -> None:
    rows, blob = binary_rows(loss_inputs())
    outputs = [{"name": "loss", "parameters": {"binary_data": False}}, {"name": "loss_items"}]
    document = {"inputs": rows, "outputs": outputs, "parameters": {"binary_data_output": True}}
    reply = live.infer("loss", document, blob)
    assert reply.headers["Content-Type"] == "application/octet-stream"
    length = int(reply.headers["Inference-Header-Content-Length"])
    assert len(reply.body) == length + 12
    assert b'"binary_data_size":12' in reply.body[:length]
    assert b'"data":[' in reply.body[:length]
    items = np.frombuffer(reply.body[length:], np.float32)
    document["parameters"] = {}
    reply = live.infer("loss", document, blob)
    assert reply.headers["Content-Type"] == "application/json"
    assert "Inference-Header-Content-Length" not in reply.headers
    np.testing.assert_array_equal(np.array(reply.json["outputs"][1]["data"], np.float32), items)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_widened(caller: Caller, artifacts_dir: Path, dtype: Any) -> None:
    arrays = loss_inputs()
    narrow = {name: array.astype(dtype) if name.startswith("feat") else array for name, array in arrays.items()}
    wide = {name: narrow[name].astype(array.dtype) for name, array in arrays.items()}
    expected = direct(artifacts_dir, "loss", wide)
    np.testing.assert_array_equal(caller.ask("loss", narrow).as_numpy("image_sums"), expected["image_sums"])


@pytest.mark.parametrize("binary_in", [True, False])
def test_no_ground_truth_at_all(caller: Caller, artifacts_dir: Path, binary_in: bool) -> None:
    for model, arrays in (("loss", loss_inputs(slots=0)), ("assigner", assigner_inputs(slots=0))):
        expected = direct(artifacts_dir, model, arrays)
        reply = caller.ask(model, arrays, list(expected), binary_in=binary_in)
        for name, array in expected.items():
            np.testing.assert_array_equal(reply.as_numpy(name), array, err_msg=name)
        assert not reply.as_numpy("fg_mask").any()


def test_no_images_is_refused(live: Live) -> None:
    """A batch of nothing is legal on the wire, but graphs do not take it; the server lives."""
    rows, blob = binary_rows(loss_inputs(images=0))
    reply = live.infer("loss", {"inputs": rows}, blob)
    assert (reply.status, reply.error) == (400, "the batch has 0 images; send at least one image")
    assert live.infer("loss", {"inputs": json_rows(loss_inputs(images=1))}).status == 200


def test_nan_and_infinity_give_a_valid_reply(live: Live, caller: Caller) -> None:
    arrays = loss_inputs()
    arrays["feat_0"][0, 64:, 0, 0] = np.nan
    arrays["feat_1"][1, 64:, 0, 0] = np.inf
    rows, blob = binary_rows(arrays)
    reply = live.infer("loss", {"inputs": rows}, blob)
    assert reply.status == 200
    values = {row["name"]: row["data"] for row in reply.json["outputs"]}
    assert values["loss"] == [None]
    assert np.isnan(caller.ask("loss", arrays).as_numpy("loss"))


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_requests(caller: Caller, compression: str) -> None:
    arrays = loss_inputs()
    plain = caller.ask("loss", arrays).as_numpy("loss")
    packed = caller.ask("loss", arrays, compression=compression)
    np.testing.assert_array_equal(packed.as_numpy("loss"), plain)


def test_replies_are_not_compressed(live: Live) -> None:
    """Clients ask for gzip by default; packing floats would cost them seconds."""
    rows, blob = binary_rows(loss_inputs())
    reply = live.infer("loss", {"inputs": rows}, blob, **{"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in reply.headers

"""Rows 1 to 6 with the client library that people have, against a live server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from serve.datatypes import Array, wire_name
from tests.serve.conftest import Live, assigner_inputs, binary_rows, json_rows, loss_inputs
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.predictions import join_predictions

DEFAULTS = {
    "loss": ["loss", "loss_items", "image_sums"],
    "loss_grad": ["loss", "loss_items", "image_sums", "grad_feat_0", "grad_feat_1", "grad_feat_2"],
    "assigner": [],
}
TARGETS = ["target_labels", "target_bboxes", "fg_mask", "target_gt_idx", "target_weights"]


def ask(live: Live, model: str, arrays: dict[str, Array], outputs: list[str] | None = None, **options: Any) -> Any:
    inputs = []
    for name, array in arrays.items():
        tensor = InferInput(name, list(array.shape), wire_name(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array, binary_data=options.get("binary_in", True)))
    binary = options.get("binary_out", True)
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in outputs] if outputs else None
    with InferenceServerClient(live.url) as client:
        return client.infer(
            model,
            inputs,
            outputs=wanted,
            request_id=options.get("request_id", ""),
            request_compression_algorithm=options.get("compression"),
            response_compression_algorithm=options.get("compression"),
        )


def direct(artifacts_dir: Path, model: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """The same file in ONNX Runtime, without a server."""
    session = onnxruntime.InferenceSession(artifacts_dir / f"{model}.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, arrays), strict=True))


def inputs_of(model: str) -> dict[str, Array]:
    return assigner_inputs() if model == "assigner" else loss_inputs()


def test_health_and_metadata(live: Live) -> None:
    with InferenceServerClient(live.url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("loss")
        assert client.is_model_ready("loss", "1")
        assert not client.is_model_ready("loss", "2")
        assert not client.is_model_ready("nobody")
        server = client.get_server_metadata()
        assert server["name"] == "yolo-assigner"
        assert server["extensions"] == ["binary_tensor_data"]
        model = client.get_model_metadata("loss", "1")
    assert (model["name"], model["versions"], model["platform"]) == ("loss", ["1"], "onnxruntime_onnx")
    rows = {row["name"]: row for row in model["inputs"] + model["outputs"]}
    assert rows["feat_0"] == {"name": "feat_0", "datatype": "FP32", "shape": [-1, 67, -1, -1]}
    assert rows["mask_gt"]["datatype"] == "BOOL"
    assert rows["loss"]["shape"] == []
    assert not rows["target_scores"]["parameters"]["default"]
    assert rows["target_labels"]["parameters"]["default"]


def test_bodies_of_the_small_rows(live: Live) -> None:
    assert live.send("GET", "/v2/health/live").json == {"live": True}
    assert live.send("GET", "/v2/health/ready").json == {"ready": True}
    assert live.send("GET", "/v2/models/loss/versions/1/ready").json == {"name": "loss", "ready": True}


@pytest.mark.parametrize("model", DEFAULTS)
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_results_are_those_of_the_engine(
    live: Live, artifacts_dir: Path, model: str, binary_in: bool, binary_out: bool
) -> None:
    arrays = inputs_of(model)
    expected = direct(artifacts_dir, model, arrays)
    reply = ask(live, model, arrays, list(expected), binary_in=binary_in, binary_out=binary_out)
    for name, array in expected.items():
        given = reply.as_numpy(name)
        assert given.dtype == array.dtype
        np.testing.assert_array_equal(given, array, err_msg=name)
    assert expected["fg_mask"].any()  # a comparison of nothing but background would prove little


@pytest.mark.parametrize("model", DEFAULTS)
def test_no_outputs_named_gives_all_but_the_heavy(live: Live, model: str) -> None:
    arrays = inputs_of(model)
    names = [row["name"] for row in ask(live, model, arrays).get_response()["outputs"]]
    assert set(names) == {*DEFAULTS[model], *TARGETS}


@pytest.mark.parametrize("slots", [3, 0])
def test_gradients_are_those_of_autograd(live: Live, slots: int) -> None:
    """Of the criterion in torch, by the maps. Without ground truth there are still those of the class term."""
    arrays = loss_inputs(slots=slots)
    reply = ask(live, "loss_grad", arrays, ["loss", *(f"grad_feat_{level}" for level in range(3))])
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


def test_only_the_requested_come_in_the_requested_order(live: Live) -> None:
    wanted = ["target_weights", "loss", "target_scores"]
    reply = ask(live, "loss", loss_inputs(), wanted, request_id="seven").get_response()
    assert [row["name"] for row in reply["outputs"]] == wanted
    assert (reply["model_name"], reply["model_version"], reply["id"]) == ("loss", "1", "seven")


def test_each_output_travels_as_it_asked_to(live: Live) -> None:
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
def test_narrow_floats_are_widened(live: Live, artifacts_dir: Path, dtype: Any) -> None:
    arrays = loss_inputs()
    narrow = {name: array.astype(dtype) if name.startswith("feat") else array for name, array in arrays.items()}
    wide = {name: narrow[name].astype(array.dtype) for name, array in arrays.items()}
    expected = direct(artifacts_dir, "loss", wide)
    np.testing.assert_array_equal(ask(live, "loss", narrow).as_numpy("image_sums"), expected["image_sums"])


@pytest.mark.parametrize("binary_in", [True, False])
def test_no_ground_truth_at_all(live: Live, artifacts_dir: Path, binary_in: bool) -> None:
    for model, arrays in (("loss", loss_inputs(slots=0)), ("assigner", assigner_inputs(slots=0))):
        expected = direct(artifacts_dir, model, arrays)
        reply = ask(live, model, arrays, list(expected), binary_in=binary_in)
        for name, array in expected.items():
            np.testing.assert_array_equal(reply.as_numpy(name), array, err_msg=name)
        assert not reply.as_numpy("fg_mask").any()


def test_no_images_is_answered_one_way_or_the_other(live: Live) -> None:
    """A batch of nothing is legal on the wire; the reply is a result or a clean refusal, and the server lives."""
    rows, blob = binary_rows(loss_inputs(images=0))
    reply = live.infer("loss", {"inputs": rows}, blob)
    assert reply.status == 200 or reply.error
    assert live.infer("loss", {"inputs": json_rows(loss_inputs(images=1))}).status == 200


def test_nan_and_infinity_give_a_valid_reply(live: Live) -> None:
    arrays = loss_inputs()
    arrays["feat_0"][0, 64:, 0, 0] = np.nan
    arrays["feat_1"][1, 64:, 0, 0] = np.inf
    rows, blob = binary_rows(arrays)
    reply = live.infer("loss", {"inputs": rows}, blob)
    assert reply.status == 200
    values = {row["name"]: row["data"] for row in reply.json["outputs"]}
    assert values["loss"] == [None]
    assert np.isnan(ask(live, "loss", arrays).as_numpy("loss"))


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_requests(live: Live, compression: str) -> None:
    arrays = loss_inputs()
    plain = ask(live, "loss", arrays).as_numpy("loss")
    packed = ask(live, "loss", arrays, compression=compression)
    np.testing.assert_array_equal(packed.as_numpy("loss"), plain)


def test_replies_are_not_compressed(live: Live) -> None:
    """Clients ask for gzip by default; packing floats would cost them seconds."""
    rows, blob = binary_rows(loss_inputs())
    reply = live.infer("loss", {"inputs": rows}, blob, **{"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in reply.headers


def test_the_client_library_shows_the_reason(live: Live) -> None:
    arrays = loss_inputs()
    arrays["gt_labels"][0, 0, 0] = 3
    with pytest.raises(InferenceServerException, match="class 3 at image 0, slot 0") as caught:
        ask(live, "loss", arrays)
    assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException, match="no model 'nobody'"):
        ask(live, "nobody", arrays)

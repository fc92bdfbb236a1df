"""Pictures and boxes over the wire, and models in half precision that take what callers have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.serve.conftest import Live, assigner_inputs, binary_rows, json_rows, loss_inputs, start, stop
from yolo_assigner.export.contract import Contract, file_hash, load_contract
from yolo_assigner.export.to_onnx.precision import narrow
from yolo_assigner.serve.client import AssignerClient
from yolo_assigner.serve.detection.validate import check_inputs
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.wire.dtypes import NUMPY_TYPES, Array, narrows

HALF = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def write_narrow(source: Path, kind: str, precision: str, folder: Path) -> None:
    """A model in half precision, named ``KIND_PRECISION``."""
    model, contract = narrow(onnx.load(source / f"{kind}.onnx"), load_contract(source / f"{kind}.json"), precision)
    path = folder / f"{kind}_{precision}.onnx"
    onnx.save(model, path)
    dataclasses.replace(contract, name=path.stem, file=path.name, sha256=file_hash(path)).save(
        path.with_suffix(".json")
    )


@pytest.fixture(scope="module")
def server(detector_dir: Path, artifacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Serves a detector in float32 and float16, and losses in both half precisions."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("detector_loss.onnx", "detector_loss.json"):
        (folder / name).write_bytes((detector_dir / name).read_bytes())
    write_narrow(detector_dir, "detector_loss", "fp16", folder)
    write_narrow(artifacts_dir, "loss", "bf16", folder)
    write_narrow(artifacts_dir, "loss", "fp16", folder)
    live = start("--artifacts", folder)
    yield live
    assert stop(live) == 0


def detector_inputs(height: int = 64, width: int = 96) -> dict[str, Array]:
    """Two random pictures with boxes."""
    boxes = {name: array for name, array in loss_inputs(side=64).items() if not name.startswith("feat_")}
    pictures = np.random.default_rng(0).uniform(0, 1, (2, 3, height, width)).astype(np.float32)
    return {"images": pictures} | boxes


def infer(live: Live, model: str, inputs: dict[str, Array]) -> dict[str, Any]:
    """Default outputs, as JSON gives them."""
    rows, blob = binary_rows(inputs)
    reply = live.infer(model, {"inputs": rows}, blob)
    assert reply.status == 200, reply.error
    return {output["name"]: output["data"] for output in reply.json["outputs"]}


def test_losses_and_detections_are_those_of_the_file(server: Live, detector_dir: Path) -> None:
    inputs = detector_inputs()
    got = infer(server, "detector_loss", inputs)
    session = ort.InferenceSession(detector_dir / "detector_loss.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.name != "target_scores"]
    assert list(got) == names
    for name, want in zip(names, session.run(names, inputs), strict=True):
        np.testing.assert_allclose(got[name], want.ravel(), rtol=1e-4, atol=1e-4)


BATCH = {"batch_idx": [0, 1, 1], "cls": [2, 0, 1], "bboxes": [[0.5, 0.5, 0.5, 1], [0.2, 0.3, 0.2, 0.2], [0.5] * 4]}


def test_the_client_sends_pictures(server: Live, detector_dir: Path) -> None:
    pictures = detector_inputs()["images"]
    with AssignerClient(server.url) as client:
        inputs = client.detector_inputs(pictures, BATCH)
        assert inputs["gt_bboxes"][0].tolist() == [[24, 0, 72, 64], [0, 0, 0, 0]]  # pixels of 96 x 64, and padding
        got = client.detector_loss(pictures, BATCH, outputs=["fg_mask"])
        (predictions,) = client.infer("detector_loss", inputs, ["predictions"]).values()
    session = ort.InferenceSession(detector_dir / "detector_loss.onnx", providers=["CPUExecutionProvider"])
    names = ["loss", "loss_items", "image_sums", "fg_mask", "predictions"]
    assert got.fg_mask is not None
    for value, want in zip((*got[:3], got.fg_mask, predictions), session.run(names, inputs), strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4)
    with AssignerClient(server.url, half=True) as client:
        assert client.detector_inputs(pictures, BATCH)["images"].dtype == np.float16
        half = client.detector_loss(pictures, BATCH).loss
    rounded = {**inputs, "images": pictures.astype(np.float16).astype(np.float32)}
    assert float(half) == pytest.approx(float(session.run(["loss"], rounded)[0]), rel=1e-4)


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        (np.zeros((2, 3, 64, 96), np.uint8), "images has dtype uint8; divide pixels by 255"),
        (np.zeros((2, 64, 96, 3), np.float32), r"images has shape \(2, 64, 96, 3\), expected"),
        (np.zeros((0, 3, 64, 96), np.float32), "image"),
    ],
)
def test_the_client_refuses_what_are_no_pictures(pictures: Array, reason: str) -> None:
    with AssignerClient("127.0.0.1:1") as client, pytest.raises(ValueError, match=reason):
        client.detector_loss(pictures, BATCH)


def test_a_float16_detector_takes_float32_pictures(server: Live) -> None:
    """They are rounded on the way in, exactly as if the caller had done it."""
    inputs = detector_inputs()
    metadata = server.send("GET", "/v2/models/detector_loss_fp16").json
    assert [row["datatype"] for row in metadata["inputs"]] == ["FP16", "INT64", "FP32", "BOOL"]
    rounded = inputs | {"images": inputs["images"].astype(np.float16)}
    assert infer(server, "detector_loss_fp16", inputs) == infer(server, "detector_loss_fp16", rounded)


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_losses_take_json(server: Live, precision: str) -> None:
    """JSON has no half precision, so a caller without binary tensors can send FP32 alone."""
    inputs = loss_inputs()
    rounded = {name: a.astype(HALF[precision]) if name.startswith("feat_") else a for name, a in inputs.items()}
    want = infer(server, f"loss_{precision}", rounded)
    reply = server.infer(f"loss_{precision}", {"inputs": json_rows(inputs)})
    assert {output["name"]: output["data"] for output in reply.json["outputs"]} == want


@pytest.mark.parametrize(("height", "width"), [(33, 64), (64, 16), (0, 64)])
def test_pictures_that_are_no_whole_cells_are_refused(server: Live, height: int, width: int) -> None:
    rows, blob = binary_rows(detector_inputs(height, width))
    reply = server.infer("detector_loss", {"inputs": rows}, blob)
    assert reply.status == 400
    assert reply.error == (
        f"input 'images' has pictures of {height} x {width}; resize or pad both sides to multiples of 32"
    )


def test_classes_that_the_detector_has_not_are_refused(server: Live) -> None:
    inputs = detector_inputs()
    inputs["gt_labels"][1, 2] = 3
    rows, blob = binary_rows(inputs)
    reply = server.infer("detector_loss", {"inputs": rows}, blob)
    assert (reply.status, "the number of classes is 3" in reply.error) == (400, True)


@pytest.fixture
def half(artifacts_dir: Path) -> Contract:
    """An assigner's contract in float16."""
    contract = load_contract(artifacts_dir / "assigner.json")
    inputs = tuple(
        dataclasses.replace(spec, dtype="float16") if spec.name == "pd_scores" else spec for spec in contract.inputs
    )
    return dataclasses.replace(contract, precision="fp16", inputs=inputs)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_float16_cannot_hold_is_refused_not_made_infinite(half: Contract, dtype: Any) -> None:
    inputs = assigner_inputs()
    inputs["pd_scores"] = inputs["pd_scores"].astype(dtype)
    assert check_inputs(half, inputs)["pd_scores"].dtype == np.float16
    inputs["pd_scores"][0, 0, 0] = 1e5
    with pytest.raises(BadRequestError, match="'pd_scores' has numbers beyond the largest FP16"):
        check_inputs(half, inputs)
    # Infinities that come in are the caller's own.
    inputs["pd_scores"][0, 0, 0] = np.inf
    assert np.isinf(check_inputs(half, inputs)["pd_scores"][0, 0, 0])


def test_float64_is_refused_for_half_precision_too(half: Contract) -> None:
    inputs = assigner_inputs()
    inputs["pd_scores"] = inputs["pd_scores"].astype(np.float64)
    with pytest.raises(BadRequestError, match="is FP64; convert it to FP16 or FP32 before sending"):
        check_inputs(half, inputs)


def test_which_floats_are_rounded() -> None:
    rounded = {(given, wanted) for given in NUMPY_TYPES for wanted in NUMPY_TYPES if narrows(given, wanted)}
    assert rounded == {("FP32", "FP16"), ("FP32", "BF16"), ("FP16", "BF16"), ("BF16", "FP16")}

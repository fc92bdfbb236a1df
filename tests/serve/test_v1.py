"""The v1 JSON API: typed JSON, and the examples of its page sent for real."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import numpy as np
import pytest

from tests.serve.conftest import Live, Reply, assigner_inputs, json_rows, loss_inputs
from yolo_assigner.serve.detection.collate import pad_ground_truth
from yolo_assigner.serve.detection.grid import anchor_points
from yolo_assigner.serve.v1.schemas import AssignReply, LossReply
from yolo_assigner.serve.wire.dtypes import Array

BATCH: dict[str, Any] = {
    "batch_idx": [0, 1, 1],
    "cls": [2, 0, 1],
    "bboxes": [[0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.4, 0.4], [0.6, 0.5, 0.7, 0.9]],
}
EMPTY: dict[str, Any] = {"batch_idx": [], "cls": [], "bboxes": []}


def maps(**options: Any) -> list[Array]:
    arrays = loss_inputs(**options)
    return [arrays[f"feat_{level}"] for level in range(3)]


def pack(array: Array, dtype: str = "float32") -> dict[str, Any]:
    data = base64.b64encode(array.astype(dtype).tobytes()).decode()
    return {"shape": list(array.shape), "dtype": dtype, "base64": data}


def flattened(feats: list[Array]) -> dict[str, Any]:
    joined = np.concatenate([feat.reshape(*feat.shape[:2], -1) for feat in feats], axis=2).transpose(0, 2, 1)
    return {"pred_distri": joined[..., :64].tolist(), "pred_scores": joined[..., 64:].tolist(), "imgsz": [64, 64]}


def infer(live: Live, model: str, arrays: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
    """Send the same request through the Open Inference Protocol."""
    wanted = [{"name": name} for name in outputs]
    reply = live.infer(model, {"inputs": json_rows(arrays), "outputs": wanted})
    return {row["name"]: np.array(row["data"]).reshape(row["shape"]) for row in reply.json["outputs"]}


def ok(reply: Reply) -> Any:
    assert reply.status == 200, reply.body
    return reply.json


def examples(live: Live, path: str) -> dict[str, Any]:
    page = live.send("GET", "/openapi.json").json
    content = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = content["schema"]["$ref"].rsplit("/", 1)[1]
    assert schema in page["components"]["schemas"]
    assert "422" not in page["paths"][path]["post"]["responses"]
    return {name: example["value"] for name, example in content["examples"].items()}


def test_examples_of_the_loss(live: Live) -> None:
    sent = examples(live, "/v1/loss")
    assert set(sent) == {"maps", "flattened", "nothing"}
    for name, value in sent.items():
        assert len(json.dumps(value)) < 20_000
        reply = LossReply.model_validate(ok(live.send("POST", "/v1/loss", value)))
        assert reply.loss is not None
        assert reply.loss > 0
        assert len(reply.image_sums) == (2 if name == "flattened" else 1)


def test_examples_of_the_assignment(live: Live) -> None:
    sent = examples(live, "/v1/assign")
    assert set(sent) == {"decoded", "maps"}
    replies = {name: ok(live.send("POST", "/v1/assign", value)) for name, value in sent.items()}
    for reply in replies.values():
        AssignReply.model_validate(reply)
    # By hand: box 0 fills the top left cell of four, box 1 the bottom right one; each holds one anchor's centre.
    image = replies["decoded"]["images"][0]
    assert image["anchor_idx"] == [0, 3]
    assert image["anchor_points"] == [[8, 8], [24, 24]]
    assert image["target_gt_idx"] == [0, 1]
    assert image["target_labels"] == [0, 1]
    assert image["target_bboxes"] == [[0, 0, 16, 16], [16, 16, 32, 32]]
    assert all(0.5 < weight <= 1 for weight in image["target_weights"])


def test_the_page_is_served(live: Live) -> None:
    page = live.send("GET", "/docs")
    assert (page.status, b"openapi.json" in page.body) == (200, True)


@pytest.mark.parametrize("form", ["nested", "packed", "half", "flattened"])
def test_loss_is_that_of_the_protocol(live: Live, form: str) -> None:
    feats = [feat.astype(np.float16).astype(np.float32) for feat in maps()]
    predictions: dict[str, Any] = {
        "nested": {"feats": [feat.tolist() for feat in feats]},
        "packed": {"feats": [pack(feat) for feat in feats]},
        "half": {"feats": [pack(feat, "float16") for feat in feats]},
        "flattened": flattened(feats),
    }[form]
    request = predictions | {"batch": BATCH, "outputs": ["target_labels", "target_scores"]}
    reply = ok(live.send("POST", "/v1/loss", request))
    truth = pad_ground_truth(BATCH["batch_idx"], BATCH["cls"], np.array(BATCH["bboxes"]), 2, (64, 64))
    arrays = {f"feat_{level}": feat for level, feat in enumerate(feats)} | truth._asdict()
    names = ["loss", "loss_items", "image_sums", "target_labels", "target_scores"]
    expected = infer(live, "loss", arrays, names)
    assert reply["model"] == "loss"
    assert np.float32(reply["loss"]) == np.float32(expected["loss"])
    np.testing.assert_allclose(list(reply["loss_items"].values()), expected["loss_items"], rtol=1e-7)
    assert list(reply["loss_items"]) == ["box", "cls", "dfl"]
    np.testing.assert_allclose([list(row.values()) for row in reply["image_sums"]], expected["image_sums"], rtol=1e-7)
    assert reply["tensors"]["target_labels"] == expected["target_labels"].tolist()
    np.testing.assert_allclose(reply["tensors"]["target_scores"], expected["target_scores"], rtol=1e-6)


def test_assignment_lists_the_foreground(live: Live) -> None:
    arrays = assigner_inputs(classes=4)
    arrays["anc_points"] = anchor_points((64, 64), [8, 16, 32])
    truth = pad_ground_truth(BATCH["batch_idx"], BATCH["cls"], np.array(BATCH["bboxes"]), 2, (64, 64))
    names = ["fg_mask", "target_gt_idx", "target_labels", "target_bboxes", "target_weights"]
    expected = infer(live, "assigner", arrays | truth._asdict(), names)
    request = {name: arrays[name].tolist() for name in ("pd_scores", "pd_bboxes")}
    request |= {"imgsz": [64, 64], "batch": BATCH, "outputs": ["fg_mask"]}
    reply = ok(live.send("POST", "/v1/assign", request))
    assert (reply["imgsz"], reply["num_anchors"]) == ([64, 64], 84)
    assert reply["tensors"]["fg_mask"] == expected["fg_mask"].tolist()
    for image, columns in enumerate(reply["images"]):
        chosen = np.flatnonzero(expected["fg_mask"][image])
        assert columns["anchor_idx"] == chosen.tolist() != []
        assert columns["anchor_points"] == arrays["anc_points"][chosen].tolist()
        for name in names[1:]:
            np.testing.assert_allclose(columns[name], expected[name][image, chosen], rtol=1e-6)


def test_raw_predictions_can_be_assigned(live: Live) -> None:
    feats = maps()
    one = ok(live.send("POST", "/v1/assign", {"feats": [pack(feat) for feat in feats], "batch": BATCH}))
    other = ok(live.send("POST", "/v1/assign", flattened(feats) | {"batch": BATCH, "model": "loss"}))
    assert one == other
    assert one["images"][0]["anchor_idx"]


def test_no_boxes(live: Live) -> None:
    feats = [pack(feat) for feat in maps()]
    assert ok(live.send("POST", "/v1/loss", {"feats": feats, "batch": EMPTY}))["loss_items"]["box"] == 0
    images = ok(live.send("POST", "/v1/assign", {"feats": feats, "batch": EMPTY}))["images"]
    assert [image["anchor_idx"] for image in images] == [[], []]


def test_nan_becomes_null(live: Live) -> None:
    feats = maps()
    feats[0][0, 64] = np.nan
    reply = ok(live.send("POST", "/v1/loss", {"feats": [pack(feat) for feat in feats], "batch": BATCH}))
    assert reply["loss"] is None
    assert reply["image_sums"][0]["cls"] is None
    assert math.isfinite(reply["image_sums"][1]["cls"])


def test_compressed_and_without_a_content_type(live: Live) -> None:
    value = {"feats": [pack(feat) for feat in maps()], "batch": BATCH}
    plain = live.send("POST", "/v1/loss", value)
    packed = gzip.compress(json.dumps(value).encode())
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert live.send("POST", "/v1/loss", packed, {"Content-Encoding": "gzip"} | headers).body == plain.body


def good() -> dict[str, Any]:
    return {"feats": [pack(feat) for feat in maps()], "batch": BATCH}


def boxes(**changes: Any) -> dict[str, Any]:
    return {"batch": BATCH | changes}


PACKED = pack(np.zeros((2, 67, 8, 8), np.float32))
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no batch": ("loss", {"batch": None}, "batch: "),
    "unknown field": ("loss", {"features": []}, "features: "),
    "text for a class": ("loss", boxes(cls=["cat", 0, 0]), "batch.cls.0: Input should be a valid number, not 'cat'"),
    "three numbers": ("loss", boxes(bboxes=[[0, 0, 1]]), "batch.bboxes.0.3: Field required"),
    "image out of range": ("loss", boxes(batch_idx=[0, 1, 2]), "batch_idx[2] is 2, and the number of images is 2"),
    "class out of range": ("loss", boxes(cls=[0, 3, 1]), "cls[1] is 3, and the number of classes is 3"),
    "negative class": ("loss", boxes(cls=[0, -1, 1]), "cls[1] is -1, and the number of classes is 3"),
    "half a class": ("loss", boxes(cls=[0, 0.5, 1]), "cls[1] is 0.5"),
    "lengths differ": ("loss", boxes(cls=[0, 1]), "cls has 2 entries, batch_idx has 3"),
    "no predictions": ("loss", {"feats": None}, "give either feats, or all of pred_distri, pred_scores and imgsz"),
    "both forms": ("loss", {"pred_scores": []}, "give either feats, or all of"),
    "two maps": (
        "loss",
        {"feats": [PACKED, PACKED]},
        "feats has 2 maps, but there are 3 strides; give one map (B, 4R + C, H, W) for each of strides 8, 16, 32",
    ),
    "no maps": ("loss", {"feats": []}, "feats has 0 maps"),
    "map of rank 3": ("loss", {"feats": [pack(np.zeros((2, 67, 64)))] * 3}, "feats[0] has shape [2, 67, 64]"),
    "maps of two sizes": ("loss", {"feats": [PACKED] * 3}, "give the maps in the order of strides 8, 16, 32"),
    "channels": ("loss", {"feats": [pack(np.zeros((2, 9, 8, 8)))] * 3}, "shape (2, 9, 8, 8), expected (2, 67, *, *)"),
    "irregular": ("loss", {"feats": [[[[[1.0], [1.0, 2.0]]]]] * 3}, "feats[0] is not a regular list"),
    "not base64": ("loss", {"feats": [PACKED | {"base64": "*"}] * 3}, "feats[0].base64 is not base64"),
    "too few bytes": ("loss", {"feats": [PACKED | {"base64": "AAAA"}] * 3}, "feats[0] has 3 bytes"),
    "packed as double": ("loss", {"feats": [PACKED | {"dtype": "float64"}] * 3}, "feats.0.dtype: "),
    "overflow": ("loss", {"feats": [PACKED | {"shape": [0, 2**62, 2**62, 1], "base64": ""}] * 3}, ""),
    "infinite box": ("loss", boxes(bboxes=[[0, 0, 1, 1e39]] * 3), "bboxes[0] is [0.0, 0.0, 1.0, inf]"),
    "unknown output": ("loss", {"outputs": ["boxes"]}, "no output 'boxes'"),
    "model of another kind": ("loss", {"model": "assigner"}, "'assigner' is not of kind loss"),
    "strides with maps": ("assign", {"strides": [8]}, "a loss model has its own"),
    "decoded and raw": ("assign", {"pd_scores": [], "pd_bboxes": [], "imgsz": [64, 64]}, "not both"),
    "half decoded": ("assign", {"feats": None, "pd_scores": []}, "give all three"),
    "image not of whole cells": (
        "assign",
        {"feats": None, "pd_scores": [], "pd_bboxes": [], "imgsz": [100, 64]},
        "100 x 64 is not made of whole cells of stride 8",
    ),
    "anchors": (
        "assign",
        {"feats": None, "pd_scores": [[[1.0]]], "pd_bboxes": [[[0, 0, 1, 1.0]]], "imgsz": [32_000_000, 32_000_000]},
        "pd_scores has 1 anchor points, but an image of 32000000 x 32000000",
    ),
    "image of no size": ("assign", {"imgsz": [0, 64]}, "imgsz.0: Input should be greater than 0"),
    "no strides": ("assign", {"strides": []}, "strides: "),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(live: Live, case: str) -> None:
    route, changes, words = BAD[case]
    reply = live.send("POST", f"/v1/{route}", good() | changes)
    assert reply.status == 400, reply.body
    assert words in reply.error
    assert live.send("POST", "/v1/loss", good()).status == 200


def phases(live: Live, model: str) -> dict[str, int]:
    """How often each phase of a model's requests was counted."""
    (stats,) = live.send("GET", f"/v2/models/{model}/stats").json["model_stats"]
    return {phase: timing["count"] for phase, timing in stats["inference_stats"].items()}


@pytest.mark.parametrize("route", ["loss", "assign"])
def test_requests_are_counted_in_the_statistics_of_their_model(live: Live, route: str) -> None:
    before = phases(live, "loss")
    ok(live.send("POST", f"/v1/{route}", good()))
    after = phases(live, "loss")
    assert after == {phase: count + (phase != "fail") for phase, count in before.items()}
    assert live.send("POST", f"/v1/{route}", good() | boxes(cls=[0, 3, 1])).status == 400  # the model has 3 classes
    assert live.send("POST", f"/v1/{route}", good() | {"outputs": ["boxes"]}).status == 400
    assert phases(live, "loss") == after | {"fail": after["fail"] + 2}
    assert live.send("POST", f"/v1/{route}", b"{").status == 400  # names no model
    assert live.send("POST", f"/v1/{route}", good() | {"model": "nobody"}).status == 404
    assert phases(live, "loss") == after | {"fail": after["fail"] + 2}


def test_unknown_models_are_not_found(live: Live) -> None:
    reply = live.send("POST", "/v1/loss", good() | {"model": "nobody"})
    assert (reply.status, "no model 'nobody'" in reply.error) == (404, True)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_bodies_that_are_not_requests(live: Live, body: bytes) -> None:
    for route in ("loss", "assign"):
        reply = live.send("POST", f"/v1/{route}", body)
        assert (reply.status, bool(reply.error)) == (400, True)

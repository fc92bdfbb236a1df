"""Every way to be refused, row by row, on one live server that must serve the next caller each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.serve.conftest import LIMIT, Live, Reply, assigner_inputs, binary_rows, json_rows, loss_inputs

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _serves_the_next(live: Live) -> Any:
    yield
    rows, blob = binary_rows(loss_inputs(images=1))
    reply = live.infer("loss", {"inputs": rows}, blob)
    assert reply.status == 200
    assert live.process.poll() is None


def refused(reply: Reply, *words: str, status: int = 400) -> None:
    assert reply.status == status, reply.body
    for word in words:
        assert word in reply.error


def edit(index: int, **changes: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[index].update(changes)


def drop(index: int) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        del rows[index]

    return change


def twice(index: int) -> Callable[[Rows], None]:
    return lambda rows: rows.append(rows[index])


# What is done to six good JSON inputs of the loss model (2 images, 64 x 64, 3 slots), and what the error must say.
# Inputs: 0 feat_0 [2, 67, 8, 8], 1 feat_1 [2, 67, 4, 4], 2 feat_2 [2, 67, 2, 2], 3 gt_labels, 4 gt_bboxes, 5 mask_gt.
BAD_INPUTS: dict[str, tuple[Callable[[Rows], None], str]] = {
    "unknown input": (edit(0, name="image"), "no input 'image'"),
    "missing input": (drop(5), "needs input mask_gt"),
    "input twice": (twice(5), "given twice"),
    "no name": (edit(0, name=None), "inputs[0] has no name"),
    "unknown datatype": (edit(0, datatype="BYTES"), "datatype 'BYTES'"),
    "datatype is a list": (edit(0, datatype=["FP32"]), "datatype ['FP32']"),
    "wider float": (edit(0, datatype="FP64"), "is FP64; convert it to FP32"),
    "wrong integer": (edit(3, datatype="INT32"), "is INT32; convert it to INT64"),
    "integers for bools": (edit(5, datatype="INT64", data=[1] * 6), "is INT64; convert it to BOOL"),
    "half in JSON": (edit(0, datatype="FP16"), "FP16 cannot be written in JSON"),
    "bfloat16 in JSON": (edit(0, datatype="BF16"), "BF16 cannot be written in JSON"),
    "wrong rank": (edit(3, shape=[6, 1]), "needs 3 axes, [B, M, 1]"),
    "fixed axis": (edit(4, shape=[2, 3, 2], data=[0] * 12), "axis 2 must be 4"),
    "channels": (edit(2, shape=[2, 134, 2, 1]), "feat_2 has shape (2, 134, 2, 1), expected (2, 67, *, *)"),
    "B disagrees": (edit(2, shape=[4, 67, 2, 1]), "(4, 67, 2, 1), expected (2, 67, *, *): (B, 4R + C, H, W), one B"),
    "M disagrees": (edit(3, shape=[2, 1, 1], data=[0, 0]), "axis M (ground-truth slots) is 3"),
    "levels of two image sizes": (edit(2, shape=[2, 67, 4, 1]), "give the maps in the order of strides 8, 16, 32"),
    "class too large": (edit(3, data=[0, 1, 2, 3, 0, 0]), "gt_labels[1, 0] is 3, and the number of classes is 3"),
    "class negative": (edit(3, data=[0, -1, 2, 0, 0, 0]), "gt_labels[0, 1] is -1, and the number of classes is 3"),
    "no shape": (edit(0, shape=None), "shape must be a list of whole numbers"),
    "shape of fractions": (edit(0, shape=[2.0, 67, 8, 8]), "shape must be a list of whole numbers"),
    "shape of booleans": (edit(3, shape=[True, 6, 1]), "shape must be a list of whole numbers"),
    "negative shape": (edit(0, shape=[-1, 67, 8, 8]), "negative size"),
    "overflowing shape": (edit(0, shape=[2**40, 67, 8, 8]), "larger than"),
    "overflowing to zero": (edit(0, shape=[2**32, 2**32, 1, 1]), "larger than"),
    "overflow behind a zero": (edit(0, shape=[0, 2**62, 2**62, 2]), "larger than"),
    "not even 64 bits": (edit(0, shape=[10**30, 1, 1, 1]), "whole numbers"),
    "hundreds of axes": (edit(0, shape=[1] * 300), "300 axes"),
    "too few values": (edit(3, data=[0] * 5), "data has 5 values, but shape [2, 3, 1] has room for 6"),
    "too many values": (edit(3, data=[0] * 7), "data has 7 values"),
    "nested otherwise": (edit(3, data=[[0, 0], [0, 0], [0, 0]]), "nested like [3, 2]"),
    "ragged": (edit(3, data=[[0, 0], [0]]), "rows differ in length"),
    "text among numbers": (edit(3, data=[0, 0, "one", 0, 0, 0]), "'one' is not a value of INT64"),
    "text among floats": (edit(4, data=["1.5"] * 24), "'1.5' is not a value of FP32"),
    "object as a number": (edit(3, data=[{}] * 6), "{} is not a value of INT64"),
    "fraction among integers": (edit(3, data=[0, 0, 0.5, 0, 0, 0]), "0.5 is not a value of INT64"),
    "null among integers": (edit(3, data=[None] * 6), "None is not a value of INT64"),
    "bool among floats": (edit(4, data=[0.5] * 23 + [True]), "True is not a value of FP32 (data[23])"),
    "bool among integers": (edit(3, data=[0, 1, True, 0, 0, 0]), "True is not a value of INT64 (data[2])"),
    "number among bools": (edit(5, data=[True, 1, True, True, True, True]), "1 is not a value of BOOL (data[1])"),
    "integer over 64 bits": (edit(3, data=[2**64] * 6), "is not a value of INT64"),
    "float over 32 bits": (edit(4, data=[1e300] * 24), "1e+300 does not fit into FP32"),
    "data is a number": (edit(3, data=5), "not a list"),
    "data and size": (edit(3, parameters={"binary_data_size": 48}), "it has 2"),
    "neither": (lambda rows: rows[3].pop("data"), "it has 0"),
    "parameters is a list": (edit(3, parameters=[]), "must be a JSON object"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs(live: Live, case: str) -> None:
    change, words = BAD_INPUTS[case]
    rows = json_rows(loss_inputs())
    change(rows)
    refused(live.infer("loss", {"inputs": rows}), words)


def test_class_of_the_assigner_comes_from_the_scores(live: Live) -> None:
    arrays = assigner_inputs(classes=5)
    arrays["gt_labels"][1, 2, 0] = 5
    words = "gt_labels[1, 2] is 5, and the number of classes is 5"
    refused(live.infer("assigner", {"inputs": json_rows(arrays)}), words)
    arrays["mask_gt"][1, 2, 0] = False  # an engine would read there all the same
    refused(live.infer("assigner", {"inputs": json_rows(arrays)}), words)
    arrays["gt_labels"][1, 2, 0] = -1  # a common way to mark padding
    assert live.infer("assigner", {"inputs": json_rows(arrays)}).status == 200


BAD_DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "cut off": (b'{"inputs": [', "not JSON"),
    "NaN": (b'{"inputs": [NaN]}', "not JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', "not JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "inputs is an object": (b'{"inputs": {}}', "inputs must be a list"),
    "an input is a number": (b'{"inputs": [1]}', "inputs[0] must be a JSON object"),
    "outputs is text": (b'{"outputs": "loss"}', "outputs must be a list"),
    "parameters is text": (b'{"parameters": "x"}', "parameters must be a JSON object"),
    "binary flag is text": (b'{"parameters": {"binary_data_output": "yes"}}', "write true or false"),
    "id is a number": (b'{"id": 7, "inputs": []}', "id is 7"),
    "nested over 100": (b'{"x": ' + b"[" * 101 + b"]" * 101 + b"}", "nested 102 deep"),
    "nested over the parser": (b"[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("case", BAD_DOCUMENTS)
def test_bad_documents(live: Live, case: str) -> None:
    body, words = BAD_DOCUMENTS[case]
    refused(live.infer("loss", body), words)


def test_brackets_in_text_are_no_nesting(live: Live) -> None:
    document = {"id": '[{"\\' * 200, "inputs": json_rows(loss_inputs(images=1))}
    reply = live.infer("loss", document)
    assert reply.status == 200
    assert reply.json["id"] == document["id"]


@pytest.mark.parametrize(
    ("outputs", "words", "status"),
    [
        ([{"name": "boxes"}], "no output 'boxes'", 400),
        ([{"name": "loss"}, {"name": "loss"}], "'loss' is asked for twice", 400),
        ([{"name": "loss", "parameters": {"binary_data": 1}}], "write true or false", 400),
        ([{}], "outputs[0] has no name", 400),
        ([{"name": "loss", "parameters": {"classification": 3}}], "classification is not available", 501),
        ([{"name": "loss", "parameters": {"shared_memory_region": "r"}}], "not available", 501),
    ],
)
def test_bad_outputs(live: Live, outputs: Rows, words: str, status: int) -> None:
    refused(live.infer("loss", {"inputs": json_rows(loss_inputs()), "outputs": outputs}), words, status=status)


def test_shared_memory_is_switched_off(live: Live) -> None:
    rows = json_rows(loss_inputs())
    del rows[0]["data"]
    rows[0]["parameters"] = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    refused(live.infer("loss", {"inputs": rows}), "shared memory is not available", status=501)
    rows[0]["parameters"]["binary_data_size"] = 4
    refused(live.infer("loss", {"inputs": rows}), "it has 2")


def test_binary_bodies_of_the_wrong_length(live: Live) -> None:
    rows, blob = binary_rows(loss_inputs())
    document = {"inputs": rows}
    refused(live.infer("loss", document, blob[:-1]), "only 5 are left")
    refused(live.infer("loss", document, blob + b"\0"), f"{len(blob) + 1} bytes follow the JSON")
    refused(live.infer("loss", {"inputs": rows[:5]}, blob), "bytes follow the JSON")
    rows[5]["parameters"]["binary_data_size"] = 7
    refused(live.infer("loss", document, blob + b"\0"), "binary_data_size is 7, but BOOL [2, 3, 1] is 6 bytes")
    rows[5]["parameters"]["binary_data_size"] = "6"
    refused(live.infer("loss", document, blob), "binary_data_size is '6'")


def test_a_byte_that_is_no_bool(live: Live) -> None:
    arrays = loss_inputs()
    arrays["mask_gt"].view(np.uint8)[0, 0, 0] = 2
    rows, blob = binary_rows(arrays)
    refused(live.infer("loss", {"inputs": rows}, blob), "byte 2 is not a BOOL")


@pytest.mark.parametrize("length", ["-1", "one", "", "99999999", "9" * 40, "1e3"])
def test_header_length_outside_the_body(live: Live, length: str) -> None:
    rows, blob = binary_rows(loss_inputs())
    headers = {"Inference-Header-Content-Length": length}
    refused(live.infer("loss", {"inputs": rows}, blob, **headers), "Inference-Header-Content-Length")


def test_header_length_in_the_middle_of_the_json(live: Live) -> None:
    rows, blob = binary_rows(loss_inputs())
    refused(live.infer("loss", {"inputs": rows}, blob, **{"Inference-Header-Content-Length": "40"}), "not JSON")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v3",
        "/v2/",
        "/v2/models",
        "/v2/models/nobody",
        "/v2/models/loss/versions/2",
        "/v2/models/loss/infer/x",
    ],
)
def test_unknown_paths(live: Live, path: str) -> None:
    refused(live.send("GET", path), status=404)
    if "models/" in path:
        refused(live.send("POST", path + "/infer", {"inputs": []}), status=404)


@pytest.mark.parametrize(
    "route", ["POST /v2/health/live", "GET /v2/models/loss/infer", "PUT /v2/models/loss/infer", "GET /v1/loss"]
)
def test_wrong_verbs(live: Live, route: str) -> None:
    method, path = route.split()
    reply = live.send(method, path)
    refused(reply, path, status=405)
    assert reply.headers["Allow"]


def test_bodies_over_the_limit(live: Live) -> None:
    refused(live.infer("loss", b" " * (LIMIT + 1)), str(LIMIT), "--max-request-bytes", status=413)
    refused(live.send("POST", "/v1/loss", b" " * (LIMIT + 1)), str(LIMIT), status=413)
    refused(live.infer("loss", json.dumps({"x": " " * (LIMIT - 20)}).encode()), "needs input")

"""JSON of requests: null counts as absent, booleans are not numbers, and errors name the value and its place."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.serve.conftest import Live, binary_rows, json_rows, loss_inputs
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.wire.json import tensor_from_json
from yolo_assigner.serve.wire.request import InferRequest, decode_request, parse_object


def read(document: Any, blob: bytes = b"") -> InferRequest:
    text = json.dumps(document).encode()
    return decode_request(memoryview(text + blob), len(text), shared_memory=True)


def row(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2], "datatype": "FP32"} | changes


def nulls() -> dict[str, Any]:
    """A request with null for every key that may be left out."""
    place = {"shared_memory_region": None, "shared_memory_byte_size": None, "shared_memory_offset": None}
    values = {"name": "v", "shape": [2], "datatype": "FP32", "data": [1, None], "parameters": None}
    raw = {"name": "b", "shape": [2], "datatype": "FP32", "data": None, "parameters": place | {"binary_data_size": 8}}
    empty = {"name": "e", "shape": [0], "datatype": "FP32", "data": None, "parameters": {"binary_data_size": 0}}
    outputs = [
        {"name": "one", "parameters": None},
        {"name": "two", "parameters": place | {"binary_data": None, "classification": None}},
    ]
    parameters = {"timeout": None, "binary_data_output": None}
    return {"id": None, "parameters": parameters, "inputs": [values, raw, empty], "outputs": outputs}


def test_null_counts_as_absent() -> None:
    request = read(nulls(), np.array([3, 4], np.float32).tobytes())
    assert (request.id, request.timeout, request.binary_default, request.shared) == (None, None, False, {})
    assert [tuple(output) for output in request.outputs] == [("one", False, None), ("two", False, None)]
    np.testing.assert_array_equal(request.inputs["v"], [1, np.nan])  # null among values is one of them
    np.testing.assert_array_equal(request.inputs["b"], [3, 4])
    assert request.inputs["e"].shape == (0,)
    assert read({"parameters": None, "inputs": None, "outputs": None}).inputs == {}
    offset = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": None}
    assert read({"inputs": [row(parameters=offset, data=None)]}).shared["x"].place == ("r", 0, 8)
    handle = parse_object(memoryview(b'{"raw_handle": {"b64": null, "x": [null]}, "offset": null}'))
    assert handle == {"raw_handle": {"x": [None]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": None}, "it has 0"),
        ({"data": None, "parameters": {"binary_data_size": None}}, "it has 0"),
        ({"data": [1, 2], "shape": None}, "shape must be a list of whole numbers, not None"),
        ({"data": [1, 2], "datatype": None}, "datatype None"),
        ({"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": None}}, "no shared_memory_byte_size"),
    ],
)
def test_null_for_a_required_key_is_refused_like_its_absence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        read({"inputs": [row(**change)]})
    assert words in str(caught.value)


def test_a_request_as_kserve_writes_it(live: Live) -> None:
    """Its client writes every key that it has nothing for."""
    rows, blob = binary_rows(loss_inputs(slots=0))
    rows = [entry | {"data": None} for entry in rows]
    reply = live.infer("loss", {"id": None, "parameters": None, "inputs": rows, "outputs": None}, blob)
    assert reply.status == 200, reply.body
    assert live.send("POST", "/v2/repository/index", {"ready": None}).json


# Values, and what the error must say: never about a value that is one of the datatype.
MIXED: dict[str, tuple[str, list[Any], str]] = {
    "bool among ints": ("INT64", [1, True, 2], "True is not a value of INT64 (data[1]); write whole numbers"),
    "bool among bytes": ("UINT8", [0, 1, False], "False is not a value of UINT8 (data[2])"),
    "bool among floats": ("FP32", [1.5, 2, True], "True is not a value of FP32 (data[2]); write numbers"),
    "bool beside null": ("FP64", [None, False], "False is not a value of FP64 (data[1])"),
    "bool in a row": ("FP32", [[1, 2], [3, True]], "True is not a value of FP32 (data[1][1])"),
    "one among bools": ("BOOL", [True, False, 1], "1 is not a value of BOOL (data[2]); write true or false"),
    "zero first": ("BOOL", [0, True], "0 is not a value of BOOL (data[0])"),
    "fraction behind both": ("BOOL", [True, 1, 0.5], "1 is not a value of BOOL (data[1])"),
    "null among bools": ("BOOL", [True, None], "None is not a value of BOOL (data[1])"),
    "text among ints": ("INT64", [[[1, 2]], [[3, "4"]]], "'4' is not a value of INT64 (data[1][0][1])"),
    "text beside rows": ("FP32", [[1.0], "2"], "'2' is not a value of FP32 (data[1])"),
    "fraction": ("INT32", [1, 2, 2.0], "2.0 is not a value of INT32 (data[2])"),
    "too large": ("INT8", [127, 128, -129], "128 does not fit into INT8 (data[1])"),
    "too small": ("UINT64", [2**64 - 1, -1], "-1 does not fit into UINT64 (data[1])"),
    "63 bits and a sign": ("INT64", [-1, 2**63], "9223372036854775808 does not fit into INT64 (data[1])"),
    "float too large": ("FP32", [[1, 2], [-1e39, 1e39]], "-1e+39 does not fit into FP32 (data[1][0])"),
    "empty text beside a list": ("FP32", [[1.0], ""], "rows differ in length"),
    "empty object beside an empty list": ("FP32", [[], {}], "rows differ in length"),
    "irregular": ("INT64", [[2**63], [1, 2]], "rows differ in length"),
    "list beside a value": ("FP32", [1.0, [2.0]], "rows differ in length"),
    "null beside a list": ("FP32", [None, [2.0]], "rows differ in length"),
}


@pytest.mark.parametrize("case", MIXED)
def test_the_offending_value_is_named(case: str) -> None:
    datatype, data, words = MIXED[case]
    with pytest.raises(BadRequestError) as caught:
        tensor_from_json("x", datatype, [2], data)
    assert words in str(caught.value)


@pytest.mark.usefixtures("limited_memory")
def test_long_text_among_many_values_takes_no_memory() -> None:
    """As an array of text it would be 40 gigabytes: each value as long as the longest."""
    with pytest.raises(BadRequestError, match=r"\.\.\. is not a value of FP32 \(data\[0\]\)"):
        tensor_from_json("x", "FP32", [10_001], ["x" * 2**20, *[1] * 10_000])


@pytest.fixture
def limited_memory() -> Any:
    """An allocation of many gigabytes fails right away, whatever the system promises."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**35, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_values_that_are_right_stay_exact() -> None:
    def same(datatype: str, data: list[Any], expected: Any) -> None:
        array = tensor_from_json("x", datatype, list(np.shape(expected)), data)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)

    same("UINT64", [0, 2**64 - 1], np.array([0, 2**64 - 1], np.uint64))
    same("INT64", [-(2**63), 2**63 - 1], np.array([-(2**63), 2**63 - 1], np.int64))
    same("INT8", [[-128], [127]], np.array([[-128], [127]], np.int8))
    same("BOOL", [True, False], np.array([True, False]))
    same("FP32", [1, 2.5, None], np.array([1, 2.5, np.nan], np.float32))
    same("FP64", [2**63, -1], np.array([2.0**63, -1], np.float64))
    same("FP32", [], np.zeros(0, np.float32))
    # Rounded once: through a double it would be a tie, and 2**25 the even of both neighbours.
    same("FP32", [2**54 + 2**30 + 1], np.array([2**54 + 2**31], np.float32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [2, True], "data": [1, 2]}, "shape[1] is True"),
        ({"shape": [2.0], "data": [1, 2]}, "shape[0] is 2.0"),
        ({"parameters": {"binary_data_size": True}}, "binary_data_size is True"),
        ({"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": True}}, "byte_size is True"),
        (
            {"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": False}},
            "offset is False",
        ),
    ],
)
def test_booleans_are_not_sizes(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        read({"inputs": [row(**change)]})
    assert words in str(caught.value)


def test_booleans_are_not_timeouts_and_numbers_not_flags() -> None:
    for parameters, words in (
        ({"timeout": True}, "timeout is True"),
        ({"binary_data_output": 1}, "binary_data_output is 1"),
    ):
        with pytest.raises(BadRequestError, match=words):
            read({"parameters": parameters})


def test_a_body_without_the_header_of_its_json(live: Live) -> None:
    rows, blob = binary_rows(loss_inputs(images=1))
    text = json.dumps({"inputs": rows}).encode()
    words = "send its number of bytes as the header Inference-Header-Content-Length"
    for body in (text + blob, text + b"\0", b'{"inputs": ['):
        reply = live.infer("loss", body)
        assert (reply.status, words in reply.error) == (400, True), reply.error
    for body, length in ((b"[1", None), (text[:-1] + blob, len(text) - 1)):
        with pytest.raises(BadRequestError) as caught:
            decode_request(memoryview(body), length)
        assert words not in str(caught.value)


def test_typed_json_does_not_accept_booleans_as_numbers(live: Live) -> None:
    batch = {"batch_idx": [0], "cls": [0], "bboxes": [[0.5, 0.5, 0.1, 0.1]]}
    packed = {"shape": [1, 67, True, 8], "dtype": "float32", "base64": ""}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("loss", {"feats": [[[[[1, 2.5, True]]]]], "batch": batch}, "feats.0.0.0.0.2: "),
        ("loss", {"feats": [packed], "batch": batch}, "feats.0.shape.2: "),
        ("loss", {"batch": batch | {"cls": [0, 1, True]}}, "batch.cls.2: "),
        ("assign", {"imgsz": [64, True], "batch": batch}, "imgsz.1: "),
        ("assign", {"strides": [8, True], "batch": batch}, "strides.1: "),
        ("reduce", {"workers": [[[1, 2, 3, True]]]}, "workers.0.0.3: "),
    ]
    for route, document, place in cases:
        reply = live.send("POST", f"/v1/{route}", document)
        assert reply.status == 400
        assert reply.error.startswith(place)
        assert "not True" in reply.error


def test_json_rows_of_every_kind_are_still_served(live: Live) -> None:
    assert live.infer("loss", {"inputs": json_rows(loss_inputs())}).status == 200

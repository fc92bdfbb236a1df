"""Encoding and decoding undo each other, for any tensors."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.serve.conftest import binary_rows, json_rows
from yolo_assigner.serve.errors import BadRequestError, UnsupportedError
from yolo_assigner.serve.wire.dtypes import BINARY_ONLY, FLOATS, NUMPY_TYPES, Array, widens, wire_name
from yolo_assigner.serve.wire.json import check_depth
from yolo_assigner.serve.wire.request import RequestedOutput, decode_request
from yolo_assigner.serve.wire.response import dump_json, encode_response

NAMES = st.text(max_size=8)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, datatypes: list[str]) -> dict[str, Array]:
    """Some named tensors of any shape, with NaN and infinities."""
    arrays = {}
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        dtype = NUMPY_TYPES[draw(st.sampled_from(datatypes))]
        if dtype == ml_dtypes.bfloat16:
            arrays[name] = draw(hnp.arrays(np.float32, SHAPES)).astype(dtype)
        else:
            arrays[name] = draw(hnp.arrays(dtype, SHAPES))
    return arrays


def assert_same(given_: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(given_) == list(expected)
    for name, array in expected.items():
        assert given_[name].dtype == array.dtype
        assert given_[name].shape == array.shape
        assert given_[name].flags.aligned
        # numpy does not find one bfloat16 NaN equal to another.
        comparable = np.float32 if array.dtype == ml_dtypes.bfloat16 else array.dtype
        np.testing.assert_array_equal(given_[name].astype(comparable), array.astype(comparable))


def framed(document: Any, blob: bytes) -> tuple[memoryview, int]:
    text = orjson.dumps(document)
    return memoryview(text + blob), len(text)


@given(tensors(list(NUMPY_TYPES)))
@example({"": np.array(np.nan, ml_dtypes.bfloat16)})
@settings(deadline=None)
@pytest.mark.filterwarnings("ignore:.*encountered in cast:RuntimeWarning")
def test_binary_requests(arrays: dict[str, Array]) -> None:
    rows, blob = binary_rows(arrays)
    assert_same(decode_request(*framed({"inputs": rows}, blob)).inputs, arrays)


@given(tensors([name for name in NUMPY_TYPES if name not in BINARY_ONLY]), st.booleans())
@settings(deadline=None)
def test_json_requests(arrays: dict[str, Array], nested: bool) -> None:
    rows = json_rows(arrays)
    for row, array in zip(rows, arrays.values(), strict=True):
        if nested and array.ndim:
            row["data"] = array.tolist()
        if np.isinf(array).any():
            return  # JSON has no infinity; the reply's null is read back as NaN
    assert_same(decode_request(memoryview(dump_json({"inputs": rows})), None).inputs, arrays)


@given(tensors([name for name in NUMPY_TYPES if name not in BINARY_ONLY]), st.data())
@settings(deadline=None)
def test_responses(arrays: dict[str, Array], data: st.DataObject) -> None:
    wanted = [RequestedOutput(name, data.draw(st.booleans())) for name in arrays]
    encoded = encode_response("model", "1", "id", wanted, arrays)
    body = b"".join(encoded.chunks)
    length = len(body) if encoded.header_length is None else encoded.header_length
    document, offset = json.loads(body[:length]), length
    assert [row["name"] for row in document["outputs"]] == list(arrays)
    for row, (name, array), output in zip(document["outputs"], arrays.items(), wanted, strict=True):
        if output.binary:
            size = row["parameters"]["binary_data_size"]
            values = np.frombuffer(body[offset : offset + size], array.dtype)
            offset += size
        else:
            values = np.array(row["data"], np.float64 if array.dtype.kind == "f" else array.dtype).astype(array.dtype)
        finite = array
        if array.dtype.kind == "f" and not output.binary:
            finite = np.where(np.isfinite(array), array, np.nan)
        np.testing.assert_array_equal(values.reshape(row["shape"]), finite, err_msg=name)
    assert offset == len(body)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 205))
@settings(deadline=None)
def test_any_bytes_are_read_or_refused(body: bytes, length: int | None) -> None:
    with suppress(BadRequestError, UnsupportedError):
        decode_request(memoryview(body), length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["name", "shape", "datatype", "parameters", "data"]), JSON),
    st.sampled_from(["inputs", "outputs"]),
)
@settings(deadline=None)
def test_any_json_is_read_or_refused(row: dict[str, Any], key: str) -> None:
    row = {"name": "x", "shape": [2], "datatype": "FP32"} | row
    with suppress(BadRequestError, UnsupportedError):
        decode_request(memoryview(json.dumps({key: [row]}).encode()), None)


@given(JSON)
@settings(deadline=None)
def test_depth_is_counted_as_a_slow_walk_counts_it(value: Any) -> None:
    def depth(item: Any) -> int:
        if not isinstance(item, dict | list):
            return 0
        return 1 + max((depth(child) for child in (item.values() if isinstance(item, dict) else item)), default=0)

    wrapped = value
    for _ in range(98):
        wrapped = [wrapped]
    # Brackets in text, and many side by side, are no depth.
    text = json.dumps([["[]"] * 60, wrapped]).encode()
    if 1 + 98 + depth(value) <= 100:
        check_depth(text)
    else:
        with pytest.raises(BadRequestError, match="nested"):
            check_depth(text)


def test_which_floats_widen() -> None:
    wider = {(given_, wanted) for given_ in NUMPY_TYPES for wanted in NUMPY_TYPES if widens(given_, wanted)}
    assert wider == {
        ("FP16", "FP32"), ("FP16", "FP64"), ("BF16", "FP32"), ("BF16", "FP64"), ("FP32", "FP64"),
    }  # fmt: skip
    assert {wire_name(NUMPY_TYPES[name]) for name in FLOATS} == FLOATS

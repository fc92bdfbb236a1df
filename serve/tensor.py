"""One input of an infer request: its description in the JSON, its values there or in the bytes behind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from serve.datatypes import Array, numpy_type, wire_name
from serve.errors import BadRequestError, UnsupportedError
from serve.json_tensor import tensor_from_json

MAX_TENSOR_BYTES = 2**31  # also bounds the other axes of a tensor that has an axis of size 0
MAX_RANK = 8
SOURCES = ("data", "binary_data_size", "shared_memory_region")


def decode_tensor(row: dict[str, Any], blob: memoryview) -> tuple[Array, int]:
    """Read one input.

    Args:
        row: Its description, an object that has a ``name``.
        blob: What is left of the binary part of the body.

    Returns:
        The values, a view of ``blob`` where alignment allows, and how many of its bytes they are.

    Raises:
        BadRequestError: Datatype, shape and values do not fit each other.
        UnsupportedError: The values are in shared memory.
    """
    name = row["name"]
    dtype = numpy_type(row.get("datatype"), name)
    shape = _shape(name, row.get("shape"), dtype.itemsize)
    parameters = row.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequestError(f"parameters of input {name!r} must be a JSON object")
    given = [key for key in SOURCES if key in (row if key == "data" else parameters)]
    if len(given) != 1:
        raise BadRequestError(f"input {name!r} must have exactly one of {', '.join(SOURCES)}; it has {len(given)}")
    if given[0] == "shared_memory_region":
        raise UnsupportedError(f"input {name!r}: shared memory is not available; send the values")
    if given[0] == "data":
        return tensor_from_json(name, wire_name(dtype), shape, row["data"]), 0
    size = math.prod(shape) * dtype.itemsize
    announced = parameters["binary_data_size"]
    if type(announced) is not int or announced != size:
        raise BadRequestError(
            f"input {name!r}: binary_data_size is {announced!r}, but {wire_name(dtype)} {shape} is {size} bytes"
        )
    if len(blob) < size:
        raise BadRequestError(f"input {name!r} announces {size} bytes, but only {len(blob)} are left in the body")
    return _view(name, blob[:size], dtype).reshape(shape), size


def _shape(name: str, shape: object, itemsize: int) -> list[int]:
    if not isinstance(shape, list) or any(type(size) is not int for size in shape):
        raise BadRequestError(f"input {name!r}: shape must be a list of whole numbers")
    if len(shape) > MAX_RANK:
        raise BadRequestError(f"input {name!r}: shape has {len(shape)} axes; {MAX_RANK} is the most that is read")
    if any(size < 0 for size in shape):
        raise BadRequestError(f"input {name!r}: shape {shape} has a negative size; give the real sizes, not -1")
    if math.prod(max(size, 1) for size in shape) * itemsize > MAX_TENSOR_BYTES:
        raise BadRequestError(f"input {name!r}: shape {shape} is larger than the {MAX_TENSOR_BYTES} bytes allowed")
    return shape


def _view(name: str, data: memoryview, dtype: np.dtype[Any]) -> Array:
    if dtype == np.bool_:
        # A byte that is neither 0 nor 1 is no bool: what an engine makes of it is undefined.
        octets = np.frombuffer(data, np.uint8)
        if octets.size and octets.max() > 1:
            raise BadRequestError(f"input {name!r}: byte {octets.max()} is not a BOOL; send 0 or 1")
        return octets.view(np.bool_)
    return np.require(np.frombuffer(data, dtype), requirements="A")

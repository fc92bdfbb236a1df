"""One input of an infer request: its description in the JSON, and its values there or in the bytes after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from yolo_assigner.serve.errors import BadRequestError, UnsupportedError
from yolo_assigner.serve.wire.dtypes import Array, numpy_type, wire_name
from yolo_assigner.serve.wire.json import show, tensor_from_json

REGION = "shared_memory_region"
BYTE_SIZE = "shared_memory_byte_size"
OFFSET = "shared_memory_offset"
REMEDY = "start the server with --shared-memory, or send the tensors in the request"
MAX_TENSOR_BYTES = 2**31
# Product of the other axes of a tensor without values: they cost nothing to send, but outputs are as long as they say.
MAX_EMPTY = 2**24
MAX_RANK = 8
SOURCES = ("data", "binary_data_size", REGION)


class Place(NamedTuple):
    """A part of a shared-memory region.

    Attributes:
        region: Name under which the region was registered.
        offset: Bytes from the start of the region.
        byte_size: Bytes of the part.
    """

    region: str
    offset: int
    byte_size: int


class SharedTensor(NamedTuple):
    """An input whose values have not been copied out of shared memory yet.

    Attributes:
        dtype: Type of the values.
        shape: Shape of any rank.
        place: Where the values lie, exactly as large as they are.
    """

    dtype: np.dtype[Any]
    shape: list[int]
    place: Place

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def whole_bytes(value: object, what: str, least: int = 0) -> int:
    """Check that a value from a request is a number of bytes.

    Raises:
        BadRequestError: It is not an integer, or is less than ``least``.
    """
    if type(value) is not int or value < least:
        raise BadRequestError(f"{what} is {value!r}; write a whole number of bytes, {least} or more")
    return value


def read_place(parameters: Mapping[str, Any], where: str, *, allowed: bool) -> Place | None:
    """Read the place in shared memory that an input or output names; None: it names none.

    Args:
        parameters: Parameters of the input or output.
        where: Kind and name of the input or output, for errors.
        allowed: Whether shared memory is switched on.

    Raises:
        UnsupportedError: A place is named while shared memory is switched off.
        BadRequestError: The place is incomplete, or a part of it has the wrong type.
    """
    if not any(key in parameters for key in (REGION, BYTE_SIZE, OFFSET)):
        return None
    if not allowed:
        raise UnsupportedError(f"{where}: shared memory is not available; {REMEDY}")
    region = parameters.get(REGION)
    if not isinstance(region, str):
        raise BadRequestError(f"{where}: {REGION} is {region!r}; write the name of a registered region")
    if BYTE_SIZE not in parameters:
        raise BadRequestError(f"{where} lies in shared memory, but has no {BYTE_SIZE}; write its number of bytes")
    byte_size = whole_bytes(parameters[BYTE_SIZE], f"{where}: {BYTE_SIZE}")
    return Place(region, whole_bytes(parameters.get(OFFSET, 0), f"{where}: {OFFSET}"), byte_size)


def decode_tensor(
    row: dict[str, Any], blob: memoryview, *, shared_memory: bool = False
) -> tuple[Array | SharedTensor, int]:
    """Decode one input.

    Args:
        row: Description of the input, an object that has a ``name``.
        blob: The rest of the binary part of the body.
        shared_memory: Whether values may lie in shared memory.

    Returns:
        The values, a view of ``blob`` where alignment allows, and how many bytes of ``blob`` they take. Values in
        shared memory are not read yet.

    Raises:
        BadRequestError: Datatype, shape and values do not fit each other.
        UnsupportedError: The values are in shared memory, which is switched off.
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
    place = read_place(parameters, f"input {name!r}", allowed=shared_memory)
    if place is not None:
        return _shared(name, dtype, shape, place), 0
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
    return view_bytes(name, blob[:size], dtype).reshape(shape), size


def _shared(name: str, dtype: np.dtype[Any], shape: list[int], place: Place) -> SharedTensor:
    tensor = SharedTensor(dtype, shape, place)
    if place.byte_size != tensor.nbytes:
        raise BadRequestError(
            f"input {name!r}: {BYTE_SIZE} is {place.byte_size}, but {wire_name(dtype)} {shape} is {tensor.nbytes} bytes"
        )
    return tensor


def _shape(name: str, shape: object, itemsize: int) -> list[int]:
    if not isinstance(shape, list):
        raise BadRequestError(f"input {name!r}: shape must be a list of whole numbers, not {show(shape)}")
    if len(shape) > MAX_RANK:
        raise BadRequestError(f"input {name!r}: shape has {len(shape)} axes; {MAX_RANK} is the most that is read")
    for axis, size in enumerate(shape):
        if type(size) is not int:
            raise BadRequestError(
                f"input {name!r}: shape must be a list of whole numbers, but shape[{axis}] is {show(size)}"
            )
    if any(size < 0 for size in shape):
        raise BadRequestError(f"input {name!r}: shape {shape} has a negative size; give the real sizes, not -1")
    check_size(f"input {name!r}:", shape, itemsize)
    return shape


def check_size(what: str, shape: list[int], itemsize: int) -> None:
    """Refuse shapes that are too large, also those that cost nothing to send because they have no values.

    Args:
        what: Beginning of the error.
        shape: Shape of any rank without negative sizes.
        itemsize: Bytes of a value.

    Raises:
        BadRequestError: The values would be too many, or there are none while the other axes are long.
    """
    size = math.prod(max(size, 1) for size in shape)
    if size * itemsize > MAX_TENSOR_BYTES:
        raise BadRequestError(f"{what} shape {shape} is larger than the {MAX_TENSOR_BYTES} bytes allowed")
    if 0 in shape and size > MAX_EMPTY:
        raise BadRequestError(
            f"{what} shape {shape} has no values, and its other axes are larger than the {MAX_EMPTY} allowed then"
        )


def view_bytes(name: str, data: memoryview, dtype: np.dtype[Any]) -> Array:
    """View little-endian bytes as a flat array; unaligned ones are copied.

    Args:
        name: The input's name, for errors.
        data: The bytes of whole values.
        dtype: Type of the values.

    Raises:
        BadRequestError: The values are BOOL, and a byte is neither 0 nor 1.
    """
    if dtype == np.bool_:
        # Engines do undefined things with booleans of other bytes.
        octets = np.frombuffer(data, np.uint8)
        if octets.size and octets.max() > 1:
            raise BadRequestError(f"input {name!r}: byte {octets.max()} is not a BOOL; send 0 or 1")
        return octets.view(np.bool_)
    return np.require(np.frombuffer(data, dtype), requirements="A")

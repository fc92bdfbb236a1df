"""Tensors written as JSON lists: strict about types, flat or nested."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from serve.errors import BadRequestError
from serve.tensors.datatypes import BINARY_ONLY, FLOATS, NUMPY_TYPES, Array

MAX_DEPTH = 100
SHOWN = 40  # characters of a value in an error
# numpy's kinds of array that a JSON list may become, by datatype.
KINDS = {name: "iuf" if name in FLOATS else "biu" if name == "BOOL" else "iu" for name in NUMPY_TYPES}
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # possessive: linear on any input
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def check_depth(document: bytes | memoryview) -> None:
    """Refuse JSON that is nested too deep. Linear in its size, and instant where there are few brackets.

    Args:
        document: Text that has already been parsed as JSON, so that its quotes are known to pair up.

    Raises:
        BadRequestError: It is nested deeper than 100.
    """
    text = bytes(document)
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    brackets = np.frombuffer(_STRING.sub(b"", text).translate(None, _NOT_BRACKETS), dtype=np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
    depth = int(steps.cumsum().max(initial=0))
    if depth > MAX_DEPTH:
        raise BadRequestError(f"the JSON is nested {depth} deep; {MAX_DEPTH} is the most that is read")


def tensor_from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> Array:
    """Read ``data`` of one input.

    Args:
        name: The input's name, for errors.
        datatype: Protocol datatype.
        shape: Announced shape.
        data: A flat row-major list, or one nested like the shape. ``null`` stands for NaN among floats, which is how
            replies write it.

    Returns:
        An array of that shape and type.

    Raises:
        BadRequestError: The datatype travels only as binary, a value is of another type or does not fit, or there are
            too few or too many.
    """
    if datatype in BINARY_ONLY:
        raise BadRequestError(f"input {name!r}: {datatype} cannot be written in JSON; send it as binary, or as FP32")
    if not isinstance(data, list):
        raise BadRequestError(f"input {name!r}: data is {_show(data)}, not a list")
    try:
        values = np.array(data)
    except ValueError as error:
        raise BadRequestError(f"input {name!r}: data is not a regular list, its rows differ in length") from error
    if values.size == 0:
        values = np.zeros(values.shape, NUMPY_TYPES[datatype])
    elif values.dtype.kind not in KINDS[datatype]:
        values = _by_leaf(name, datatype, data)
    return _shaped(name, _convert(name, datatype, values), shape)


def _by_leaf(name: str, datatype: str, data: list[Any]) -> Array:
    """Lists that numpy read as another type: floats with nulls, integers over 63 bits, or something that is wrong."""
    types: tuple[type, ...] = (int, float, type(None)) if datatype in FLOATS else (int,)
    for leaf in _leaves(data):
        if type(leaf) not in types:
            raise BadRequestError(f"input {name!r}: {_show(leaf)} is not a value of {datatype}")
    try:
        return np.array(data, np.float64 if datatype in FLOATS else np.uint64)
    except OverflowError as error:
        raise BadRequestError(f"input {name!r}: data has values outside the range of {datatype}") from error


def _leaves(data: list[Any]) -> Iterator[Any]:
    for item in data:
        if isinstance(item, list):
            yield from _leaves(item)
        else:
            yield item


def _convert(name: str, datatype: str, values: Array) -> Array:
    """Give values the wanted type, without losing any."""
    with np.errstate(over="ignore"):
        array = values.astype(NUMPY_TYPES[datatype])
    same = np.isfinite(array) == np.isfinite(values) if datatype in FLOATS else array == values
    if not same.all():
        raise BadRequestError(f"input {name!r}: {values[~same].flat[0]} does not fit into {datatype}")
    return array


def _shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    count = math.prod(shape)
    if array.size != count:
        raise BadRequestError(
            f"input {name!r}: data has {array.size} values, but shape {list(shape)} has room for {count}"
        )
    if array.size and array.ndim != 1 and array.shape != tuple(shape):
        raise BadRequestError(
            f"input {name!r}: data is nested like {list(array.shape)}, but its shape is {list(shape)}; "
            "write it flat, or nested like the shape"
        )
    return array.reshape(shape)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."

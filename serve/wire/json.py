"""Tensors written as JSON lists: strict about types, flat or nested."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.wire.dtypes import BINARY_ONLY, FLOATS, NUMPY_TYPES, Array

MAX_DEPTH = 100
SHOWN = 40  # characters of a value in an error
# Types of the values of a JSON list, by datatype.
LEGAL: dict[str, set[type]] = {
    name: {int, float, type(None)} if name in FLOATS else {bool} if name == "BOOL" else {int} for name in NUMPY_TYPES
}
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
        raise BadRequestError(f"input {name!r}: data is {show(data)}, not a list")
    # numpy takes booleans for numbers, and makes room for the longest text in every place.
    types = _leaf_types(data)
    if not types <= LEGAL[datatype]:
        _refuse_type(name, datatype, data)
    values = _read(name, datatype, types, data)
    return _shaped(name, _convert(name, datatype, values), shape)


def _leaf_types(data: list[Any]) -> set[type]:
    """Types of the values of a nested list, in one pass without a step of Python for each value."""
    leaves: Iterable[Any] = data
    first = data[0] if data else None
    while isinstance(first, list):
        leaves = chain.from_iterable(leaves)
        first = first[0] if first else None
    try:
        return set(map(type, leaves))
    except TypeError:  # a value beside a list
        return {list}


def _refuse_type(name: str, datatype: str, data: list[Any]) -> None:
    """Name the first value that is not of a datatype; none where the list is only irregular."""
    found = _first_other(data, LEGAL[datatype])
    if found is not None:
        place, leaf = found
        remedy = "true or false" if datatype == "BOOL" else "numbers" if datatype in FLOATS else "whole numbers"
        raise BadRequestError(
            f"input {name!r}: {show(leaf)} is not a value of {datatype} (data{place}); write {remedy}"
        )


def _first_other(data: list[Any], legal: set[type], place: str = "") -> tuple[str, Any] | None:
    """Find the first value of another type, and its indices."""
    for index, item in enumerate(data):
        if isinstance(item, list):
            found = _first_other(item, legal, f"{place}[{index}]")
            if found is not None:
                return found
        elif type(item) not in legal:
            return f"{place}[{index}]", item
    return None


def _read(name: str, datatype: str, types: set[type], data: list[Any]) -> Array:
    """Values of legal types, as wide as JSON has them; whole numbers that no one type of array holds stay objects."""
    whole = {"BOOL": np.bool_, "UINT64": np.uint64}.get(datatype, np.int64)
    try:
        return np.array(data, whole if types <= {int, bool} else np.float64)
    except OverflowError:
        return np.array(data, np.float64 if datatype in FLOATS else np.object_)
    except (TypeError, ValueError) as error:
        raise BadRequestError(f"input {name!r}: data is not a regular list, its rows differ in length") from error


def _convert(name: str, datatype: str, values: Array) -> Array:
    """Give values the wanted type, without losing any."""
    dtype = NUMPY_TYPES[datatype]
    if values.dtype == dtype:
        return values
    if datatype in FLOATS:
        with np.errstate(over="ignore"):
            array = values.astype(dtype)
        fits = np.isfinite(array) == np.isfinite(values)
    else:
        limits = np.iinfo(dtype)
        array, fits = values, np.asarray((values >= limits.min) & (values <= limits.max), np.bool_)
    if not fits.all():
        index = np.unravel_index(np.argmin(fits), fits.shape)
        place = "".join(f"[{position}]" for position in index)
        raise BadRequestError(f"input {name!r}: {values[index]} does not fit into {datatype} (data{place})")
    return array.astype(dtype, copy=False)


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


def show(value: object) -> str:
    """A value for an error, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


# An empty list costs 60 bytes for two, numbers cost 15 for two: tensors are lists of many numbers.
MAX_LISTS = 2**20
# Of keys and values; what a request needs is some dozens, and eight for each image of a reduced batch.
MAX_STRINGS = 2**18


def check_parts(text: bytes) -> None:
    """Refuse JSON that would cost more than its size suggests.

    Args:
        text: Whatever was sent; brackets inside strings are counted too.

    Raises:
        BadRequestError: It has too many parts.
    """
    lists = text.count(b"[") + text.count(b"{")
    if lists > MAX_LISTS:
        raise BadRequestError(
            f"the JSON has {lists} lists and objects, {MAX_LISTS} is the most that is read; write tensors flat, or "
            "send them as binary"
        )
    strings = text.count(b'"') // 2
    if strings > MAX_STRINGS:
        raise BadRequestError(f"the JSON has {strings} strings; {MAX_STRINGS} is the most that is read")

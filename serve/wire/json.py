"""Tensors as JSON lists, flat or nested, with strict types."""

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
# Parsed, an empty list costs 60 bytes for two characters and a number 15 for two: tensors are lists of many numbers.
MAX_LISTS = 2**20
MAX_STRINGS = 2**18  # keys and values; a request needs some dozens, and eight for each image of a reduced batch
# Python types that a JSON list may hold, by datatype.
LEGAL: dict[str, set[type]] = {
    name: {int, float, type(None)} if name in FLOATS else {bool} if name == "BOOL" else {int} for name in NUMPY_TYPES
}
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # possessive: linear on any input
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def check_parts(text: bytes) -> None:
    """Refuse JSON whose parsed form would be far larger than its text.

    Args:
        text: Unparsed JSON; brackets inside strings are counted too.

    Raises:
        BadRequestError: The text has too many lists, objects or strings.
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


def check_depth(document: bytes | memoryview) -> None:
    """Refuse JSON that is nested too deep, in time linear in its size.

    Args:
        document: Text that has already been parsed as JSON, so its quotes are balanced.

    Raises:
        BadRequestError: The text is nested deeper than 100.
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
    """Convert ``data`` of one input.

    Args:
        name: The input's name, for errors.
        datatype: Protocol datatype.
        shape: Shape that the request announces.
        data: A flat row-major list, or one nested like the shape. Among floats, ``null`` stands for NaN, as in
            responses.

    Returns:
        An array of that shape and type.

    Raises:
        BadRequestError: The datatype can only be sent as binary, a value has another type or does not fit, or the
            number of values is wrong.
    """
    if datatype in BINARY_ONLY:
        raise BadRequestError(f"input {name!r}: {datatype} cannot be written in JSON; send it as binary, or as FP32")
    if not isinstance(data, list):
        raise BadRequestError(f"input {name!r}: data is {show(data)}, not a list")
    # Checked first: numpy converts booleans to numbers, and allots the longest string's size to every element.
    types = _leaf_types(data)
    if not types <= LEGAL[datatype]:
        _refuse_type(name, datatype, data)
    values = _read(name, datatype, types, data)
    return _shaped(name, _convert(name, datatype, values), shape)


def _leaf_types(data: list[Any]) -> set[type]:
    """Collect the types of a nested list's values, without a Python loop over them."""
    leaves: Iterable[Any] = data
    first = data[0] if data else None
    while isinstance(first, list):
        leaves = chain.from_iterable(leaves)
        first = first[0] if first else None
    try:
        return set(map(type, leaves))
    except TypeError:  # a value and a list side by side
        return {list}


def _refuse_type(name: str, datatype: str, data: list[Any]) -> None:
    """Raise an error that names the first value of a wrong type; return where the list is only irregular."""
    found = _first_other(data, LEGAL[datatype])
    if found is not None:
        place, leaf = found
        remedy = "true or false" if datatype == "BOOL" else "numbers" if datatype in FLOATS else "whole numbers"
        raise BadRequestError(
            f"input {name!r}: {show(leaf)} is not a value of {datatype} (data{place}); write {remedy}"
        )


def _first_other(data: list[Any], legal: set[type], place: str = "") -> tuple[str, Any] | None:
    """Find the indices and the value of the first leaf whose type is not legal."""
    for index, item in enumerate(data):
        if isinstance(item, list):
            found = _first_other(item, legal, f"{place}[{index}]")
            if found is not None:
                return found
        elif type(item) not in legal:
            return f"{place}[{index}]", item
    return None


def _read(name: str, datatype: str, types: set[type], data: list[Any]) -> Array:
    """Convert values of legal types to the widest dtype; integers that fit no dtype together stay objects."""
    whole = {"BOOL": np.bool_, "UINT64": np.uint64}.get(datatype, np.int64)
    try:
        return np.array(data, whole if types <= {int, bool} else np.float64)
    except OverflowError:
        return np.array(data, np.float64 if datatype in FLOATS else np.object_)
    except (TypeError, ValueError) as error:
        raise BadRequestError(f"input {name!r}: data is not a regular list, its rows differ in length") from error


def _convert(name: str, datatype: str, values: Array) -> Array:
    """Convert values to a datatype, refusing those that do not fit."""
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
    """Write a value for an error, truncated where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."

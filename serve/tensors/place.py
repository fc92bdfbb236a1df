"""Where a tensor lies in shared memory, as a request says it. Reads nothing but the request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from yolo_assigner.serve.errors import BadRequestError, UnsupportedError

REGION = "shared_memory_region"
BYTE_SIZE = "shared_memory_byte_size"
OFFSET = "shared_memory_offset"
REMEDY = "start the server with --shared-memory or --cuda-shared-memory, or send the tensors in the request"


class Place(NamedTuple):
    """A part of a region.

    Attributes:
        region: Name under which the region was registered.
        offset: Bytes from the region's begin.
        byte_size: Bytes of the part.
    """

    region: str
    offset: int
    byte_size: int


class SharedTensor(NamedTuple):
    """An input whose values are still to be copied out of shared memory.

    Attributes:
        dtype: Of its values.
        shape: Of any rank.
        place: As large as the values.
    """

    dtype: np.dtype[Any]
    shape: list[int]
    place: Place

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def whole_bytes(value: object, what: str, least: int = 0) -> int:
    """A number of bytes.

    Raises:
        BadRequestError: It is no whole number, or less than ``least``.
    """
    if type(value) is not int or value < least:
        raise BadRequestError(f"{what} is {value!r}; write a whole number of bytes, {least} or more")
    return value


def read_place(parameters: Mapping[str, Any], where: str, *, allowed: bool) -> Place | None:
    """The place that the parameters of an input or output name; None when they name none.

    Args:
        parameters: Of the input or output.
        where: Its kind and name, for errors.
        allowed: Whether shared memory is switched on.

    Raises:
        UnsupportedError: It is named while shared memory is switched off.
        BadRequestError: The place is not complete, or is no place.
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

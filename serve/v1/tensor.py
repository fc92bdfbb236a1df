"""Tensors in typed JSON."""

from __future__ import annotations

import base64
import binascii
import math

import numpy as np

from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.tensors.datatypes import Array
from yolo_assigner.serve.tensors.tensor import check_size
from yolo_assigner.serve.v1.schemas import PackedTensor


def read_tensor(name: str, value: object, rank: int) -> Array:
    """An array from either way to write a tensor.

    Args:
        name: Where it stood in the request, for errors.
        value: Nested lists of numbers, or a packed tensor.
        rank: Its number of axes.

    Returns:
        float32, of that rank.

    Raises:
        BadRequestError: The lists are not regular, or the bytes are not what shape and dtype say.
    """
    if isinstance(value, PackedTensor):
        return _unpack(name, value, rank)
    try:
        array = np.array(value, np.float32)
    except ValueError as error:
        raise BadRequestError(f"{name} is not a regular list, its rows differ in length") from error
    # Where an axis is empty, those below it cannot be told from nested lists.
    return array.reshape(array.shape + (0,) * (rank - array.ndim))


def _unpack(name: str, packed: PackedTensor, rank: int) -> Array:
    if len(packed.shape) != rank:
        raise BadRequestError(f"{name} has shape {packed.shape}; it needs {rank} axes")
    try:
        raw = base64.b64decode(packed.base64, validate=True)
    except binascii.Error as error:
        raise BadRequestError(f"{name}.base64 is not base64: {error}") from error
    check_size(name, packed.shape, np.dtype(packed.dtype).itemsize)
    dtype = np.dtype(packed.dtype).newbyteorder("<")
    size = math.prod(packed.shape) * dtype.itemsize
    if len(raw) != size:
        raise BadRequestError(f"{name} has {len(raw)} bytes, but {packed.dtype} {packed.shape} is {size} bytes")
    return np.frombuffer(raw, dtype).reshape(packed.shape).astype(np.float32)

"""The protocol's datatypes, their numpy dtypes, and which may be converted to which."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from yolo_assigner.serve.errors import BadRequestError

Array = NDArray[Any]

# Little-endian whatever the host: the wire's byte order.
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
WIRE_NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in NUMPY_TYPES.items()}
BINARY_ONLY = frozenset({"FP16", "BF16"})
FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})


def wire_name(dtype: str | np.dtype[Any]) -> str:
    """Translate a numpy dtype to the protocol's name, for example ``float32`` to ``FP32``."""
    return WIRE_NAMES[np.dtype(dtype)]


def numpy_type(datatype: object, tensor: str) -> np.dtype[Any]:
    """Translate a protocol datatype to a numpy dtype.

    Args:
        datatype: Value from a request, of any type.
        tensor: Name of the input, for the error.

    Raises:
        BadRequestError: The protocol has no such datatype.
    """
    if not isinstance(datatype, str) or datatype not in NUMPY_TYPES:
        raise BadRequestError(
            f"input {tensor!r} has datatype {datatype!r}, which is not one of {', '.join(NUMPY_TYPES)}"
        )
    return NUMPY_TYPES[datatype]


def widens(given: str, expected: str) -> bool:
    """Whether both are float types and ``expected`` holds every value of ``given`` exactly."""
    return given in FLOATS and expected in FLOATS and NUMPY_TYPES[given].itemsize < NUMPY_TYPES[expected].itemsize


def narrows(given: str, expected: str) -> bool:
    """Whether ``expected`` is a half-precision type to which ``given``, another float of up to 32 bits, is rounded.

    Exporting a model in half precision decides that its digits are enough. Callers need not know of that, and could
    not send such types in JSON.
    """
    return given in FLOATS - {expected, "FP64"} and expected in BINARY_ONLY

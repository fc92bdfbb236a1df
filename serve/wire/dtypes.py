"""The protocol's datatypes and numpy's, and which of them may stand in for another."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from yolo_assigner.serve.errors import BadRequestError

Array = NDArray[Any]

# Little-endian by name: the wire's byte order whatever the host's.
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
    """The protocol's name of a numpy dtype, for example ``FP32`` for ``float32``."""
    return WIRE_NAMES[np.dtype(dtype)]


def numpy_type(datatype: object, tensor: str) -> np.dtype[Any]:
    """The numpy dtype of a protocol datatype.

    Args:
        datatype: What the request says.
        tensor: Whose datatype it is, for the error.

    Raises:
        BadRequestError: There is no such datatype.
    """
    if not isinstance(datatype, str) or datatype not in NUMPY_TYPES:
        raise BadRequestError(
            f"input {tensor!r} has datatype {datatype!r}, which is not one of {', '.join(NUMPY_TYPES)}"
        )
    return NUMPY_TYPES[datatype]


def widens(given: str, wanted: str) -> bool:
    """Whether ``given`` is a float type whose every value ``wanted`` holds exactly."""
    return given in FLOATS and wanted in FLOATS and NUMPY_TYPES[given].itemsize < NUMPY_TYPES[wanted].itemsize


def narrows(given: str, wanted: str) -> bool:
    """Whether ``wanted`` is a half-precision type that ``given``, another float of at most 32 bits, is rounded to.

    Who exports a model in half precision has decided that its digits are enough. Callers need not know of it, and in
    JSON they could not send such types.
    """
    return given in FLOATS - {wanted, "FP64"} and wanted in BINARY_ONLY

"""From named arrays to the bytes of a response. Arrays are sent from where they lie, not copied into one body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from yolo_assigner.serve.wire.dtypes import Array, wire_name
from yolo_assigner.serve.wire.request import RequestedOutput
from yolo_assigner.serve.wire.tensors import BYTE_SIZE, OFFSET, REGION


class EncodedResponse(NamedTuple):
    """A response that is ready to be written.

    Attributes:
        chunks: Parts of the body in order: the JSON, then one part per binary output.
        header_length: Bytes of JSON; None when the whole body is JSON.
    """

    chunks: list[bytes | memoryview]
    header_length: int | None


def dump_json(value: Any) -> bytes:
    """Write plain types and arrays as JSON. NaN and the infinities become ``null``."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_response(
    model: str, version: str, identifier: str | None, requested: Sequence[RequestedOutput], arrays: dict[str, Array]
) -> EncodedResponse:
    """Write the response to an infer request.

    Args:
        model: Name of the model.
        version: Its version.
        identifier: The request's ``id``.
        requested: The outputs in the order in which they are sent.
        arrays: Values of the outputs. Of outputs in shared memory, only the place is sent.
    """
    rows: list[dict[str, Any]] = []
    blobs: list[memoryview] = []
    for name, binary, place in requested:
        array = np.ascontiguousarray(arrays[name])
        row: dict[str, Any] = {"name": name, "datatype": wire_name(array.dtype), "shape": list(arrays[name].shape)}
        if place is not None:
            row["parameters"] = {REGION: place.region, BYTE_SIZE: array.nbytes, OFFSET: place.offset}
        elif binary:
            row["parameters"] = {"binary_data_size": array.nbytes}
            blobs.append(array.reshape(-1).view(np.uint8).data)
        else:
            row["data"] = array.reshape(-1)
        rows.append(row)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if identifier is not None:
        document["id"] = identifier
    head = dump_json({**document, "outputs": rows})
    some_binary = any(output.binary for output in requested)
    return EncodedResponse([head, *(blob for blob in blobs if blob.nbytes)], len(head) if some_binary else None)

"""Tensors in shared memory: inputs copied out and checked, outputs copied in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.shared_memory.regions import Regions
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.request import RequestedOutput
from yolo_assigner.serve.wire.tensors import BYTE_SIZE, SharedTensor, view_bytes


def read_tensors(regions: Regions, tensors: Mapping[str, SharedTensor]) -> dict[str, Array]:
    """Copy inputs out of shared memory, so that nobody can change them any more.

    Args:
        regions: Where they lie.
        tensors: By name.

    Raises:
        BadRequestError: A place cannot be read, or its bytes are no values of the tensor's type.
        TooLargeError: Together they are over the limit.
        BusyError: Those of other requests leave no room for them.
    """
    if not tensors:
        return {}
    pieces = regions.memory.take([tensor.nbytes for tensor in tensors.values()])
    arrays = {}
    for (name, tensor), piece in zip(tensors.items(), pieces, strict=True):
        regions.read(tensor.place, piece)
        arrays[name] = view_bytes(name, piece, tensor.dtype).reshape(tensor.shape)
    return arrays


def check_places(regions: Regions, wanted: Sequence[RequestedOutput]) -> None:
    """See that outputs have a place before they are computed.

    Raises:
        BadRequestError: One has not.
    """
    for output in wanted:
        if output.place is not None:
            regions.check(output.place)


def write_outputs(regions: Regions, wanted: Sequence[RequestedOutput], arrays: Mapping[str, Array]) -> None:
    """Copy those outputs to shared memory that are wanted there. None is written before all are known to fit.

    Args:
        regions: Where they shall lie.
        wanted: All outputs of the request.
        arrays: Their values.

    Raises:
        BadRequestError: A place is too small, or cannot be written.
    """
    placed = [(output.name, output.place) for output in wanted if output.place is not None]
    for name, place in placed:
        size = arrays[name].nbytes
        if place.byte_size < size:
            raise BadRequestError(
                f"output {name!r} has {size} bytes, but its {BYTE_SIZE} is {place.byte_size}; make room for all of it"
            )
    for name, place in placed:
        regions.write(place, np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)

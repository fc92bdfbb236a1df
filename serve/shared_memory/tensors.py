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
    """Copy inputs out of shared memory, so that no client can change them any more.

    Args:
        regions: The registered regions.
        tensors: Inputs by name.

    Returns:
        Arrays by name, of the tensors' shapes and types.

    Raises:
        BadRequestError: A place cannot be read, or its bytes are not values of the tensor's type.
        TooLargeError: Together the inputs are over the limit of a request.
        BusyError: The inputs of other requests leave no room for them.
    """
    if not tensors:
        return {}
    pieces = regions.memory.take([tensor.nbytes for tensor in tensors.values()])
    arrays = {}
    for (name, tensor), piece in zip(tensors.items(), pieces, strict=True):
        regions.read(tensor.place, piece)
        arrays[name] = view_bytes(name, piece, tensor.dtype).reshape(tensor.shape)
    return arrays


def check_places(regions: Regions, requested: Sequence[RequestedOutput]) -> None:
    """Check, before outputs are computed, that those for shared memory have a place there.

    Raises:
        BadRequestError: A place cannot be used.
    """
    for output in requested:
        if output.place is not None:
            regions.check(output.place)


def write_outputs(regions: Regions, requested: Sequence[RequestedOutput], arrays: Mapping[str, Array]) -> None:
    """Copy the outputs for shared memory to their places. None is written before all are known to fit.

    Args:
        regions: The registered regions.
        requested: All outputs of the request.
        arrays: Outputs by name.

    Raises:
        BadRequestError: A place is too small, or cannot be written.
    """
    placed = [(output.name, output.place) for output in requested if output.place is not None]
    for name, place in placed:
        size = arrays[name].nbytes
        if place.byte_size < size:
            raise BadRequestError(
                f"output {name!r} has {size} bytes, but its {BYTE_SIZE} is {place.byte_size}; make room for all of it"
            )
    for name, place in placed:
        regions.write(place, np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)

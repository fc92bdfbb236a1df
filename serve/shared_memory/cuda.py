"""Regions of a GPU's memory that clients share by CUDA's handles between processes.

Like objects of POSIX shared memory they are opened for a moment at every use: a client that has died or freed its
memory is then an error of that request, while memory that stayed mapped would break all that runs on the GPU.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.runners.base import RunnerError
from yolo_assigner.serve.inference.runners.cuda import HANDLE_BYTES, call
from yolo_assigner.serve.shared_memory.gpu import DeviceMemory, Gpu, gpu


class CudaRegion(NamedTuple):
    """Memory of a GPU.

    Attributes:
        name: Chosen by the client.
        gpu: Where it is.
        byte_size: Bytes of the region.
        handle: CUDA's.
    """

    name: str
    gpu: Gpu
    byte_size: int
    handle: bytes

    @contextmanager
    def opened(self) -> Iterator[tuple[DeviceMemory, int]]:
        """The memory, and where in it the region begins.

        Raises:
            BadRequestError: It is gone or too small.
        """
        with self.gpu.opened(self.name, self.handle, self.byte_size) as memory:
            yield memory, 0

    def exists(self) -> bool:
        """Whether it can still be opened."""
        try:
            with self.opened():
                return True
        except BadRequestError:
            return False

    def status(self) -> dict[str, Any]:
        """As the protocol shows it."""
        return {"name": self.name, "device_id": self.gpu.index, "byte_size": self.byte_size}


class Gpus:
    """The GPUs of this machine, each made ready when the first region on it is registered."""

    def check(self) -> None:
        """See that there is one.

        Raises:
            ValueError: There is none, or CUDA's bindings or a driver are missing.
        """
        try:
            count = call("cudaGetDeviceCount")
        except (RunnerError, RuntimeError) as error:
            raise ValueError(f"CUDA shared memory needs a GPU: {error}; serve without --cuda-shared-memory") from error
        if not count:
            raise ValueError("CUDA shared memory needs a GPU, and there is none; serve without --cuda-shared-memory")

    def region(self, name: str, raw_handle: object, device_id: object, byte_size: int) -> CudaRegion:
        """A region that can be opened.

        Args:
            name: Chosen by the client.
            raw_handle: An object whose ``b64`` is CUDA's handle in base64.
            device_id: The GPU's index.
            byte_size: Bytes of the region.

        Raises:
            BadRequestError: It cannot.
        """
        region = CudaRegion(name, self._gpu(device_id), byte_size, _decode(raw_handle))
        with region.opened():
            return region

    def _gpu(self, device_id: object) -> Gpu:
        if type(device_id) is not int or device_id < 0:
            raise BadRequestError(f"device_id is {device_id!r}; write the index of a GPU, counted from 0")
        try:
            return gpu(device_id)
        except RunnerError as error:
            raise BadRequestError(f"device_id is {device_id}: {error}") from error


def _decode(raw_handle: object) -> bytes:
    text = raw_handle.get("b64") if isinstance(raw_handle, dict) else None
    try:
        handle = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        handle = b""
    if len(handle) != HANDLE_BYTES:
        raise BadRequestError(
            f"raw_handle is no handle of {HANDLE_BYTES} bytes; write {{b64: cudaIpcGetMemHandle's in base64}}"
        )
    return handle

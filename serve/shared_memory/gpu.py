"""Memory of a GPU that clients share, open for the moment of a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.runners.cuda import CudaMemory


class DeviceMemory:
    """Open memory of a client.

    Args:
        memory: Of its GPU.
        address: Where it begins here.
    """

    def __init__(self, memory: CudaMemory, address: int) -> None:
        self._memory = memory
        self._address = address

    def read(self, target: memoryview, start: int) -> None:
        """Fill memory of the host with the bytes from ``start`` on.

        Raises:
            BadRequestError: The GPU cannot read them.
        """
        if len(target):
            self._memory.copy_out(np.frombuffer(target, np.uint8), self._address + start)
            self._memory.synchronise()

    def write(self, data: memoryview, start: int) -> None:
        """Write bytes of the host from ``start`` on.

        Raises:
            BadRequestError: The GPU cannot write them.
        """
        if len(data):
            self._memory.copy_in(self._address + start, np.frombuffer(data, np.uint8))
            self._memory.synchronise()


class Gpu:
    """One GPU. Only one region of it is used at a time, since all are copied in the order of one stream.

    Args:
        index: Counted from 0.

    Raises:
        RunnerError: CUDA's bindings, a driver or the GPU is missing.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._memory = CudaMemory(index)
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        """Another process has its own."""
        return gpu, (self.index,)

    @contextmanager
    def opened(self, name: str, handle: bytes, byte_size: int) -> Iterator[DeviceMemory]:
        """Open a client's memory for the time of a ``with`` block, in any thread.

        Args:
            name: Of the region, for errors.
            handle: CUDA's, of the memory.
            byte_size: That it must have.

        Raises:
            BadRequestError: It is gone, too small, or cannot be copied.
        """
        with self._lock:
            try:
                self._memory.enter()
                address = self._memory.open_shared(handle)
                try:
                    size = self._memory.size_from(address)
                    if byte_size > size:
                        raise BadRequestError(
                            f"region {name!r} is {byte_size} bytes, but the memory of its handle has {size}"
                        )
                    yield DeviceMemory(self._memory, address)
                finally:
                    self._memory.close_shared(address)
            except RuntimeError as error:
                raise BadRequestError(
                    f"region {name!r}: its memory on GPU {self.index} cannot be used ({error}); keep it allocated, in "
                    "a process of your own, and register it anew"
                ) from error


@cache
def gpu(index: int) -> Gpu:
    """The one of this process; its errors are :class:`Gpu`'s."""
    return Gpu(index)

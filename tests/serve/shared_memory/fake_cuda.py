"""CUDA's bindings with GPUs in host memory, since there is none where the tests run.

Handles, errors and structures are the real ones. Memory is only reached at addresses that are open, within allocations
that are alive.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import cuda.bindings.driver as real_driver
import cuda.bindings.runtime as real
import numpy as np

from yolo_assigner.serve.wire.dtypes import Array

GPUS = 2
OK = real.cudaError_t.cudaSuccess
INVALID = real.cudaError_t.cudaErrorInvalidValue


class FakeCuda:
    """The module of the runtime, and that of the driver.

    Attributes:
        allocations: Of other processes, by handle: the GPU and the bytes.
        opened: Handles by their addresses here, once for each time that they were opened.
        fails: Names of functions that fail.
        device: The calling thread's GPU.
    """

    def __init__(self) -> None:
        self.allocations: dict[bytes, tuple[int, Array]] = {}
        self.opened: list[tuple[int, bytes]] = []
        self.fails: set[str] = set()
        self.device = -1

    def __getattr__(self, name: str) -> Any:
        """Constants and structures."""
        return getattr(real_driver if name in ("CUresult",) else real, name)

    def allocate(self, size: int, gpu: int = 0) -> bytes:
        """What another process does; its handle."""
        handle = os.urandom(real.CUDA_IPC_HANDLE_SIZE)
        self.allocations[handle] = gpu, np.zeros(size, np.uint8)
        return handle

    def cudaGetDeviceCount(self) -> tuple[Any, int]:
        """So many."""
        return OK, GPUS

    def cudaSetDevice(self, device: int) -> tuple[Any]:
        """The calling thread's."""
        self.device = device
        return (OK,)

    def cudaStreamCreateWithFlags(self, _: int) -> tuple[Any, int]:
        """A stream."""
        return OK, 77

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        """Copies are done at once."""
        return (OK if stream == 77 and "cudaStreamSynchronize" not in self.fails else INVALID,)

    def cudaIpcOpenMemHandle(self, handle: Any, flags: int) -> tuple[Any, int | None]:
        """An address, the same each time."""
        key = bytes((ctypes.c_ubyte * real.CUDA_IPC_HANDLE_SIZE).from_address(handle.getPtr()))
        if key not in self.allocations or flags != real.cudaIpcMemLazyEnablePeerAccess:
            return real.cudaError_t.cudaErrorInvalidResourceHandle, None
        gpu, memory = self.allocations[key]
        assert self.device == gpu
        self.opened.append((memory.ctypes.data, key))
        return OK, memory.ctypes.data

    def cudaIpcCloseMemHandle(self, address: int) -> tuple[Any]:
        """As often as it was opened."""
        found = next(pair for pair in self.opened if pair[0] == address)
        self.opened.remove(found)
        return (OK,)

    def cuMemGetAddressRange(self, address: int) -> tuple[Any, int, int]:
        """Of the allocation."""
        memory = self._memory(address)
        assert memory is not None
        return real_driver.CUresult.CUDA_SUCCESS, memory.ctypes.data, memory.nbytes

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any]:
        """Between host and open memory."""
        device = target if kind == real.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        memory = self._memory(device)
        if memory is None or stream != 77 or device + size > memory.ctypes.data + memory.nbytes:
            return (INVALID,)
        ctypes.memmove(target, source, size)
        return (OK,)

    def _memory(self, address: int) -> Array | None:
        for _, key in self.opened:
            memory = self.allocations[key][1]
            if memory.ctypes.data <= address < memory.ctypes.data + memory.nbytes:
                return memory
        return None

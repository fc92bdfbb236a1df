"""Memory of a GPU, and everything that is asked of CUDA."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any, Protocol

from yolo_assigner.serve.inference.runners.base import RunnerError
from yolo_assigner.serve.wire.dtypes import Array


class Memory(Protocol):
    """Memory of a device, with one stream in whose order it is copied. Addresses are numbers."""

    @property
    def stream(self) -> int:
        """Handle of the stream."""

    def enter(self) -> None:
        """Make the device the calling thread's own; comes before all else in each call from outside."""

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes, aligned to 256."""

    def free(self, address: int) -> None:
        """Give them back."""

    def copy_in(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device; it must not change before :meth:`synchronise`."""

    def copy_out(self, array: Array, address: int) -> None:
        """Fill a contiguous array from the device; it is filled after :meth:`synchronise`."""

    def synchronise(self) -> None:
        """Wait for all that was queued in the stream."""

    def close(self) -> None:
        """Give the stream back."""


class CudaMemory:
    """Memory of a real GPU, by CUDA's own bindings.

    Args:
        index: Which GPU.

    Raises:
        RunnerError: The bindings, a driver or the GPU is missing.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        bindings()  # when they are missing, that is the error
        try:
            count = call("cudaGetDeviceCount")
        except RuntimeError as error:
            raise RunnerError(f"no GPU can be used ({error}); is NVIDIA's driver installed, and new enough?") from error
        if index >= count:
            raise RunnerError(
                f"there is no GPU {index}, only {count} of them, counted from 0; choose with --device cuda:N"
            )
        self.enter()
        self.stream = int(call("cudaStreamCreateWithFlags", bindings().cudaStreamNonBlocking))

    @property
    def capability(self) -> str:
        """Compute capability, for example ``8.9``."""
        attributes = bindings().cudaDeviceAttr
        parts = (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor)
        return ".".join(str(call("cudaDeviceGetAttribute", part, self._index)) for part in parts)

    def enter(self) -> None:
        """Make the device the calling thread's own."""
        call("cudaSetDevice", self._index)

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes."""
        return int(call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give them back."""
        call("cudaFree", address)

    def copy_in(self, address: int, array: Array) -> None:
        """Queue a copy to the device."""
        kind = bindings().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def copy_out(self, array: Array, address: int) -> None:
        """Queue a copy from the device."""
        kind = bindings().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def synchronise(self) -> None:
        """Wait for the stream; failures of what was queued come back here."""
        call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Give the stream back."""
        self.enter()
        call("cudaStreamDestroy", self.stream)


def call(name: str, *arguments: Any) -> Any:
    """Call a function of CUDA's runtime.

    Args:
        name: The function's.
        arguments: The function's.

    Returns:
        What it gives beside its status, if anything.

    Raises:
        RunnerError: CUDA's bindings are missing.
        RuntimeError: It failed; the text names it and CUDA's reason.
    """
    cuda = bindings()
    error, *values = getattr(cuda, name)(*arguments)
    if error != cuda.cudaError_t.cudaSuccess:
        reasons = (cuda.cudaGetErrorName(error)[1], cuda.cudaGetErrorString(error)[1])
        raise RuntimeError(f"{name} failed: {', '.join(reason.decode() for reason in reasons)}")
    return values[0] if values else None


@cache
def bindings() -> ModuleType:
    """CUDA's own bindings of its runtime.

    Raises:
        RunnerError: They are missing.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise RunnerError(f"CUDA's bindings do not import ({error}); pip install cuda-bindings") from error

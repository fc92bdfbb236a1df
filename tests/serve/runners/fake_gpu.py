"""A GPU simulated in host memory: memory by addresses, and an execution context that runs ONNX.

It follows the documented rules of CUDA and TensorRT, and fails where a real GPU would access memory out of bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from yolo_assigner.export.contract import Contract
from yolo_assigner.export.to_tensorrt.contract import EngineContract
from yolo_assigner.serve.wire.dtypes import Array

STREAM = 77


class HostMemory:
    """Device memory made of numpy arrays. Copies happen as late as they may, when the stream is synchronised."""

    stream = STREAM
    capability = "8.9"

    def __init__(self, capacity: int = 2**30) -> None:
        self.blocks: dict[int, Array] = {}
        self.allocations = 0
        self.closed = False
        self._capacity = capacity
        self._next = 256
        self.queue: list[tuple[Array, Array]] = []

    def enter(self) -> None:
        """Do nothing: there is one device."""

    def allocate(self, size: int) -> int:
        """Make a new block at an address that was never used."""
        if size + sum(block.size for block in self.blocks.values()) > self._capacity:
            raise RuntimeError("cudaMalloc failed: cudaErrorMemoryAllocation, out of memory")
        address = self._next
        self._next += -(-size // 256) * 256 + 256
        self.blocks[address] = np.full(size, 0xEE, np.uint8)
        self.allocations += 1
        return address

    def free(self, address: int) -> None:
        """Finish queued copies, then forget a block."""
        self.synchronise()
        del self.blocks[address]

    def copy_in(self, address: int, array: Array) -> None:
        """Queue a copy."""
        assert array.flags.c_contiguous
        self.queue.append((self.bytes_at(address, array.nbytes), array.reshape(-1).view(np.uint8)))

    def copy_out(self, array: Array, address: int) -> None:
        """Queue a copy."""
        self.queue.append((array.reshape(-1).view(np.uint8), self.bytes_at(address, array.nbytes)))

    def synchronise(self) -> None:
        """Make the queued copies."""
        for target, source in self.queue:
            target[:] = source
        self.queue.clear()

    def close(self) -> None:
        """Record the call."""
        self.closed = True

    def bytes_at(self, address: int, size: int) -> Array:
        """Return a part of a block, which must be large enough."""
        block = self.blocks[address]
        assert size <= block.size
        return block[:size]


class Context:
    """An execution context that computes with ONNX Runtime.

    Args:
        session: Of the ONNX file.
        engine: The types of its inputs and outputs, and its profiles.
        contract: The axes of its inputs.
        memory: Where it computes.
    """

    def __init__(self, session: Any, engine: EngineContract, contract: Contract, memory: HostMemory) -> None:
        self.active_optimization_profile = 0
        self.switches: list[int] = []
        self.fails: str | None = None
        self._session = session
        self._engine = engine
        self._axes = {spec.name: spec.axes for spec in contract.inputs}
        self._wide = {spec.name: spec.dtype for spec in contract.inputs}
        self._memory = memory
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        """Set the allocator of one output."""
        self._allocators[name] = allocator
        return True

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        """Switch the profile; shapes must be set again afterwards."""
        assert stream == STREAM
        self.active_optimization_profile = index
        self.switches.append(index)
        self._shapes.clear()
        return index < len(self._engine.profiles)

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Set an address, which is not 0, not even for an empty tensor."""
        self._addresses[name] = address
        return address > 0 and address % 256 == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set a shape within the active profile."""
        profile = self._engine.profiles[self.active_optimization_profile]
        self._shapes[name] = shape
        for axis, size in zip(self._axes[name], shape, strict=True):
            low, _, high = (axis, axis, axis) if isinstance(axis, int) else profile[axis]
            if not low <= size <= high:
                return False
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Read the inputs, compute, ask for memory for every output, write there."""
        if stream != STREAM or self.fails == "execute_async_v3":
            return False
        self._memory.synchronise()
        results = self._session.run([spec.name for spec in self._engine.outputs], self._inputs())
        for spec, result in zip(self._engine.outputs, results, strict=True):
            array = np.ascontiguousarray(result).astype(spec.dtype)
            allocator = self._allocators[spec.name]
            address = allocator.reallocate_output_async(spec.name, 0, max(array.nbytes, 1), 256, STREAM)
            if not address:
                return False
            self._memory.bytes_at(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
            allocator.notify_shape(spec.name, result.shape)
        return True

    def _inputs(self) -> Mapping[str, Array]:
        arrays = {}
        for spec in self._engine.inputs:
            dtype = np.dtype(spec.dtype)
            octets = self._memory.bytes_at(self._addresses[spec.name], self._size(spec.name, dtype))
            arrays[spec.name] = octets.view(dtype).reshape(self._shapes[spec.name]).astype(self._wide[spec.name])
        return arrays

    def _size(self, name: str, dtype: np.dtype[Any]) -> int:
        return math.prod(self._shapes[name]) * dtype.itemsize


class Library:
    """The module of TensorRT-RTX without what needs a GPU.

    Args:
        real: The module.
        context: What its engines make.
    """

    def __init__(self, real: Any, context: Context) -> None:
        self.ILogger = real.ILogger
        self.IOutputAllocator = real.IOutputAllocator
        self.__version__ = real.__version__
        self._context = context

    def Runtime(self, _: Any) -> Library:
        """The runtime, which is this object, as engine and context makers are."""
        return self

    def deserialize_cuda_engine(self, _: bytes) -> Library:
        """Return the engine, which is this object."""
        return self

    def create_execution_context(self) -> Context:
        """Return the context."""
        return self._context

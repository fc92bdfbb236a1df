"""Running a TensorRT execution context: shapes, device memory that is kept, and outputs of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.serve.engine.runners.cuda import Memory
from yolo_assigner.serve.tensors.datatypes import Array


class Buffer:
    """Device memory that only grows.

    Args:
        memory: Where it is taken from.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._size = 0
        self.address = 0

    def reserve(self, size: int) -> int:
        """Address of at least ``size`` bytes; what was there may be lost. Never 0, which the runtime refuses."""
        size = max(size, 1)
        if size > self._size:
            self.release()
            self.address, self._size = self._memory.allocate(size), size
        return self.address

    def release(self) -> None:
        """Give the memory back."""
        if self.address:
            address, self.address, self._size = self.address, 0, 0
            self._memory.free(address)


class Execution:
    """An execution context with its memory. Each call ends only when the device is done.

    Args:
        library: The module ``tensorrt``, or the one of TensorRT-RTX.
        context: Its execution context.
        memory: Of the device that the context is on.
        outputs: Of the engine, in its types.
    """

    def __init__(self, library: Any, context: Any, memory: Memory, outputs: Sequence[TensorSpec]) -> None:
        self._context = context
        self._memory = memory
        self._inputs: dict[str, Buffer] = {}
        self._outputs = {spec.name: Buffer(memory) for spec in outputs}
        self._types = {spec.name: np.dtype(spec.dtype) for spec in outputs}
        # All outputs have one, not only those whose size depends on values: the runtime knows every size best.
        self._allocator = _output_allocator(library, self._outputs)
        for name in self._outputs:
            self._do("set_output_allocator", name, self._allocator)

    def run(self, profile: int, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once.

        Args:
            profile: Index of the optimisation profile, which the inputs fit.
            inputs: Contiguous, in the engine's types.
            outputs: Which to fetch. The engine computes all.

        Raises:
            RuntimeError: TensorRT or CUDA failed; the text names the call.
        """
        self._memory.enter()
        if self._context.active_optimization_profile != profile:
            self._do("set_optimization_profile_async", profile, self._memory.stream)
        for name, array in inputs.items():
            buffer = self._inputs.setdefault(name, Buffer(self._memory))
            self._do("set_tensor_address", name, buffer.reserve(array.nbytes))
            self._do("set_input_shape", name, array.shape)
            self._memory.copy_in(buffer.address, array)
        self._allocator.begin()
        self._do("execute_async_v3", self._memory.stream)
        results = {name: np.empty(self._allocator.shapes[name], self._types[name]) for name in outputs}
        for name, array in results.items():
            self._memory.copy_out(array, self._outputs[name].address)
        self._memory.synchronise()
        return results

    def close(self) -> None:
        """Give all memory back."""
        self._memory.enter()
        for buffer in (*self._inputs.values(), *self._outputs.values()):
            buffer.release()

    def _do(self, method: str, *arguments: Any) -> None:
        if not getattr(self._context, method)(*arguments):
            self._memory.synchronise()  # a failure of CUDA has a reason, and nothing may be queued when we leave
            reason = self._allocator.failure or "what TensorRT logged says why"
            raise RuntimeError(f"{method} of TensorRT failed: {reason}")


def _output_allocator(library: Any, buffers: Mapping[str, Buffer]) -> Any:
    """What TensorRT asks for memory for outputs, and tells their shapes, while it runs."""

    class OutputAllocator(library.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.begin()

        def begin(self) -> None:
            """Forget the last run."""
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.failure: Exception | None = None

        def reallocate_output_async(self, tensor_name: str, _memory: int, size: int, *_: int) -> int:
            try:
                return buffers[tensor_name].reserve(size)
            except RuntimeError as error:  # which must not pass through TensorRT: 0 tells it that there is none
                self.failure = error
                return 0

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shapes[tensor_name] = tuple(shape)

    return OutputAllocator()

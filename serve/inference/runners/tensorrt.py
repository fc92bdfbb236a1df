"""The runner of TensorRT and TensorRT-RTX engines; the Python modules of both have the same interface."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from yolo_assigner.export.contract import Contract, TensorSpec
from yolo_assigner.export.to_tensorrt.contract import EngineContract, check_engine, check_machine
from yolo_assigner.export.to_tensorrt.library import load_library
from yolo_assigner.serve.inference.runners.base import Device, RunnerError, UnfitRequestError
from yolo_assigner.serve.inference.runners.cuda import CudaMemory, Memory
from yolo_assigner.serve.inference.runners.profiles import choose_profile, dynamic_sizes
from yolo_assigner.serve.wire.dtypes import Array

logger = logging.getLogger("serve.tensorrt")


class TensorRtRunner:
    """Runs a TensorRT engine.

    An engine of half precision takes narrower floats than the model's contract says, and gives float32 all the same.
    The server keeps the model's contract and narrows the inputs. Results are as exact as the precision that the
    operator chose for the engine; numbers beyond the range of the narrower type are refused.

    Args:
        path: The engine file.
        engine: Contract of the engine.
        contract: Contract of the model that the engine was built from.
        device: A GPU.
    """

    platform = "tensorrt_plan"

    def __init__(self, path: Path, engine: EngineContract, contract: Contract, device: Device) -> None:
        self._path = path
        self._engine = engine
        self._contract = contract
        self._device = device
        self._memory: CudaMemory | None = None
        self._execution: Execution | None = None
        self._alive: list[Any] = []

    @property
    def description(self) -> str:
        """File, version and device."""
        return f"{self._engine.file}, {self._engine.runtime} {self._engine.runtime_version}, {self._device}"

    @property
    def sizes(self) -> Mapping[str, int]:
        """Usual sizes of the first profile, for which the engine is fastest."""
        return {axis: usual for axis, (_, usual, _) in self._engine.profiles[0].items()}

    def load(self) -> None:
        """Check file and machine, then load the engine onto the GPU.

        Raises:
            ContractError: The engine was built for another model, version or GPU.
            ValueError: The library is missing.
            RunnerError: CUDA's bindings, the driver or the GPU is missing, or TensorRT refuses the engine.
        """
        check_engine(self._path, self._engine, self._contract)
        library = load_library(self._engine.runtime)
        self._memory = memory = CudaMemory(self._device.number)
        check_machine(self._engine, self._engine.runtime, library.__version__, memory.capability)
        context = self._context(library)
        self._execution = Execution(library, context, memory, self._engine.outputs)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute all outputs, fetch the named ones."""
        assert self._execution is not None  # noqa: S101 - for the type checker
        profile = choose_profile(self._engine, dynamic_sizes(self._contract.inputs, inputs))
        return self._execution.run(profile, narrowed(self._engine, inputs), outputs)

    def close(self) -> None:
        """Release the engine and its memory on the GPU."""
        if self._execution is not None:
            self._execution.close()
        self._execution = None
        while self._alive:
            self._alive.pop()  # the context before what it was made from
        if self._memory is not None:
            self._memory.close()
        self._memory = None

    def _context(self, library: Any) -> Any:
        log = _logger(library)
        runtime = library.Runtime(log)
        engine = runtime.deserialize_cuda_engine(self._path.read_bytes())
        context = None if engine is None else engine.create_execution_context()
        if context is None:
            raise RunnerError(
                f"{self._path} cannot be loaded: {log.last}; build it again with `{self._engine.rebuild_command}`"
            )
        self._alive = [log, runtime, engine, context]
        return context


def narrowed(engine: EngineContract, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Convert inputs to an engine's types, contiguous.

    Args:
        engine: Contract of the engine.
        arrays: Inputs by name. Infinities and NaN stay what they are.

    Raises:
        UnfitRequestError: A finite number is beyond the range of a narrower float.
    """
    inputs = {}
    for spec in engine.inputs:
        try:
            with np.errstate(over="raise"):
                inputs[spec.name] = np.ascontiguousarray(arrays[spec.name], spec.dtype)
        except FloatingPointError as error:
            raise UnfitRequestError(
                f"input {spec.name!r} has numbers beyond the largest {spec.dtype}, which engine {engine.file} takes; "
                f"scale them down, or have one built: `{replace(engine, precision='fp32').rebuild_command}`"
            ) from error
    return inputs


def _logger(library: Any) -> Any:
    """Make a logger for TensorRT that writes to the server's log and keeps the last error for exceptions."""
    levels = {
        library.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        library.ILogger.Severity.ERROR: logging.ERROR,
        library.ILogger.Severity.WARNING: logging.WARNING,
    }

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = "TensorRT gave no reason"

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                self.last = msg
            logger.log(level, "%s", msg)

    return Logger()


class Buffer:
    """A block of device memory that grows on demand.

    Args:
        memory: Allocates the block.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._size = 0
        self.address = 0

    def reserve(self, size: int) -> int:
        """Return the address of at least ``size`` bytes, whose content may be lost; never 0, which TensorRT refuses."""
        size = max(size, 1)
        if size > self._size:
            self.release()
            self.address, self._size = self._memory.allocate(size), size
        return self.address

    def release(self) -> None:
        """Free the block."""
        if self.address:
            address, self.address, self._size = self.address, 0, 0
            self._memory.free(address)


class Execution:
    """An execution context with its input and output memory. Calls return when the device is done.

    Args:
        library: The module ``tensorrt`` or that of TensorRT-RTX.
        context: The library's execution context.
        memory: Memory of the context's device.
        outputs: Outputs of the engine, in its types.
    """

    def __init__(self, library: Any, context: Any, memory: Memory, outputs: Sequence[TensorSpec]) -> None:
        self._context = context
        self._memory = memory
        self._inputs: dict[str, Buffer] = {}
        self._outputs = {spec.name: Buffer(memory) for spec in outputs}
        self._types = {spec.name: np.dtype(spec.dtype) for spec in outputs}
        # For all outputs, not only those whose size depends on values: TensorRT then tells every size.
        self._allocator = _output_allocator(library, self._outputs)
        for name in self._outputs:
            self._do("set_output_allocator", name, self._allocator)

    def run(self, profile: int, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Call the engine once.

        Args:
            profile: Index of an optimisation profile that the inputs fit.
            inputs: Contiguous, in the engine's types.
            outputs: Names of the outputs to fetch; the engine computes all.

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
        """Free all memory."""
        self._memory.enter()
        for buffer in (*self._inputs.values(), *self._outputs.values()):
            buffer.release()

    def _do(self, method: str, *arguments: Any) -> None:
        if not getattr(self._context, method)(*arguments):
            self._memory.synchronise()  # raises CUDA's own reason; and nothing may be queued afterwards
            reason = self._allocator.failure or "what TensorRT logged says why"
            raise RuntimeError(f"{method} of TensorRT failed: {reason}")


def _output_allocator(library: Any, buffers: Mapping[str, Buffer]) -> Any:
    """Make the object that TensorRT asks for output memory, and tells the shapes of outputs, during a call."""

    class OutputAllocator(library.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.begin()

        def begin(self) -> None:
            """Forget the last call."""
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.failure: Exception | None = None

        def reallocate_output_async(self, tensor_name: str, _memory: int, size: int, *_: int) -> int:
            try:
                return buffers[tensor_name].reserve(size)
            except RuntimeError as error:  # must not pass through TensorRT; 0 says that there is no memory
                self.failure = error
                return 0

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shapes[tensor_name] = tuple(shape)

    return OutputAllocator()

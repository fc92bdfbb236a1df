"""Engines of TensorRT or TensorRT-RTX, whose Python modules are alike."""

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
from yolo_assigner.serve.inference.runners.profiles import axis_sizes, choose_profile
from yolo_assigner.serve.wire.dtypes import Array

logger = logging.getLogger("serve.tensorrt")


class TensorRtRunner:
    """A model as an engine.

    An engine for half precision takes narrower floats than the model's contract says; what it gives is float32 all the
    same. The server goes on to speak the model's contract and narrows what comes in. Results are then as exact as the
    precision that the operator chose when building the engine, and no caller has to know of it, but one whose numbers
    are beyond the narrower type's range: they are refused.

    Args:
        path: The engine file.
        engine: Its contract.
        contract: Of the model that it was built from.
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
        """The usual sizes of the first profile, for which the engine is fastest."""
        return {axis: usual for axis, (_, usual, _) in self._engine.profiles[0].items()}

    def load(self) -> None:
        """Check file and machine, then bring the engine to the GPU.

        Raises:
            ContractError: The engine is of another model, version or GPU.
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
        profile = choose_profile(self._engine, axis_sizes(self._contract.inputs, inputs))
        return self._execution.run(profile, narrowed(self._engine, inputs), outputs)

    def close(self) -> None:
        """Free the GPU."""
        if self._execution is not None:
            self._execution.close()
        self._execution = None
        while self._alive:
            self._alive.pop()  # the context first, what it was made from after it
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
    """Inputs in an engine's types, contiguous.

    Args:
        engine: Whose types.
        arrays: By name. Numbers that are infinite, or none, stay so.

    Raises:
        UnfitRequestError: A number is beyond the range of a narrower float.
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
    """TensorRT's messages go to the server's log; the last error is kept for exceptions."""
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

"""Exported models in ONNX Runtime and TensorRT; inputs and outputs stay in the device's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.report import first_line
from benchmarks.contenders import OUTPUTS, Setting
from benchmarks.gpu.clock import MissingError, Run
from benchmarks.gpu.inputs import Inputs
from benchmarks.gpu.models import KIND_OF_TASK, find_engine, find_model
from yolo_assigner.export.contract import Contract
from yolo_assigner.export.to_tensorrt.contract import EngineContract, check_machine
from yolo_assigner.export.to_tensorrt.library import load_library

ASKED = {**OUTPUTS, "loss+grad": ("loss", "loss_items", "grad_feat_0", "grad_feat_1", "grad_feat_2")}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def onnx_runtime(
    setting: Setting, precision: str, implementation: str, sets: Sequence[Inputs], folders: Sequence[Path]
) -> Run:
    """A model in ONNX Runtime with IO binding; a call returns outputs by name.

    Raises:
        MissingError: The installed onnxruntime has no CUDA.
        ContractError: The model is missing.
    """
    path, contract = find_model(folders, KIND_OF_TASK[setting.task], implementation, precision, setting.classes)
    device = sets[0].truth.gt_bboxes.device
    session = _session(path, ASKED[setting.task], device)
    feeds = [feed(contract, inputs) for inputs in sets]
    bindings = [_binding(session, tensors, ASKED[setting.task], device) for tensors in feeds]
    options = run_options()

    def run(number: int) -> dict[str, Any]:
        session.run_with_iobinding(bindings[number], options)
        return dict(zip(ASKED[setting.task], bindings[number].get_outputs(), strict=True))

    run.keep = feeds  # type: ignore[attr-defined]  # a binding holds only addresses
    return run


def run_options() -> Any:
    """Options of a run that is queued in the stream and not waited for, like the other contenders."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def feed(contract: Contract, inputs: Inputs) -> dict[str, Tensor]:
    """Tensors by the model's names, in the model's order."""
    tensors = [*inputs.predictions, *inputs.truth]
    return {spec.name: tensor.contiguous() for spec, tensor in zip(contract.inputs, tensors, strict=True)}


def _session(path: Path, outputs: Sequence[str], device: torch.device) -> Any:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingError(f"not installed ({error})") from error
    from yolo_assigner.serve.inference.runners.onnx_runtime import prune_outputs

    providers: list[Any] = [CPU]
    if device.type == "cuda":
        if CUDA not in onnxruntime.get_available_providers():
            raise MissingError(f"onnxruntime {onnxruntime.__version__} has no {CUDA}; bring onnxruntime-gpu")
        onnxruntime.preload_dlls()
        stream = str(torch.cuda.current_stream().cuda_stream)
        providers = [(CUDA, {"device_id": device.index or 0, "use_tf32": 0, "user_compute_stream": stream}), CPU]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    graph = prune_outputs(onnx.load(path), outputs).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    if device.type == "cuda" and CUDA not in session.get_providers():
        raise MissingError(f"{CUDA} did not start; what ONNX Runtime printed names the missing library")
    return session


def _binding(session: Any, tensors: Mapping[str, Tensor], outputs: Sequence[str], device: torch.device) -> Any:
    binding = session.io_binding()
    place = device.type, device.index or 0
    for name, tensor in tensors.items():
        binding.bind_input(name, *place, _numpy_type(tensor), tuple(tensor.shape), tensor.data_ptr())
    for name in outputs:
        binding.bind_output(name, *place)
    return binding


def _numpy_type(tensor: Tensor) -> Any:
    return np.dtype(str(tensor.dtype).removeprefix("torch."))


def tensorrt(setting: Setting, precision: str, runtime: str, sets: Sequence[Inputs], folders: Sequence[Path]) -> Run:
    """An engine of the dense model in torch's stream; a call returns all outputs by name.

    Raises:
        MissingError: The GPU or the library is missing, or the library does not load the engine.
        ContractError: The model or its engine is missing, or the engine is for other GPUs.
    """
    path, contract = find_model(folders, KIND_OF_TASK[setting.task], "dense", precision, setting.classes)
    try:
        library = load_library(runtime)
    except ValueError as error:
        raise MissingError(str(error)) from error
    device = sets[0].truth.gt_bboxes.device
    if device.type != "cuda":
        raise MissingError(f"engines of {runtime} need a GPU")
    file, engine = find_engine(path, contract, runtime)
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    check_machine(engine, runtime, library.__version__, capability)
    context, keep = load_engine(library, runtime, file)
    return bound(context, engine, [feed(contract, inputs) for inputs in sets], keep=keep)


def load_engine(library: Any, runtime: str, file: Path) -> tuple[Any, object]:
    """Load an engine: its execution context, and the objects that must live as long.

    Args:
        library: Module of the runtime.
        runtime: Name of the runtime.
        file: File of the engine.

    Raises:
        MissingError: The engine does not load on this GPU.
    """
    try:
        log = library.Logger(library.Logger.ERROR)
        reader = library.Runtime(log)
        loaded = reader.deserialize_cuda_engine(file.read_bytes())
        context = None if loaded is None else loaded.create_execution_context()
    except (RuntimeError, TypeError, OSError, AttributeError) as error:
        raise MissingError(f"{runtime} {library.__version__} does not load {file.name}: {first_line(error)}") from error
    if context is None:
        raise MissingError(f"{runtime} {library.__version__} refuses {file.name} on this GPU; it printed why")
    return context, (log, reader, loaded)


def bound(context: Any, engine: EngineContract, feeds: Sequence[Mapping[str, Tensor]], keep: object = None) -> Run:
    """Call an execution context on tensors of the device.

    Args:
        context: TensorRT's execution context.
        engine: Contract of the engine. No output's size depends on values.
        feeds: Inputs by name, of each input set.
        keep: Objects that must live as long as the function.
    """
    from yolo_assigner.serve.inference.runners.profiles import choose_profile

    sizes = [
        {axis: size for spec in engine.inputs for axis, size in zip(spec.axes, tensors[spec.name].shape, strict=True)}
        for tensors in feeds
    ]
    device = next(iter(feeds[0].values())).device
    outputs: dict[str, Tensor] = {}

    def run(number: int) -> dict[str, Tensor]:
        stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0
        profile = choose_profile(engine, {axis: size for axis, size in sizes[number].items() if isinstance(axis, str)})
        if context.active_optimization_profile != profile:
            _check(context.set_optimization_profile_async(profile, stream), "set_optimization_profile_async")
        for name, tensor in feeds[number].items():
            _check(context.set_input_shape(name, tuple(tensor.shape)), f"set_input_shape of {name}")
            _check(context.set_tensor_address(name, tensor.data_ptr()), f"set_tensor_address of {name}")
        for spec in engine.outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            if spec.name not in outputs or outputs[spec.name].shape != shape:
                outputs[spec.name] = torch.empty(shape, dtype=getattr(torch, spec.dtype), device=device)
            _check(context.set_tensor_address(spec.name, outputs[spec.name].data_ptr()), f"address of {spec.name}")
        _check(context.execute_async_v3(stream), "execute_async_v3")
        return outputs

    run.keep = keep  # type: ignore[attr-defined]
    return run


def _check(done: bool, what: str) -> None:
    if not done:
        raise RuntimeError(f"{what} failed; TensorRT printed why")

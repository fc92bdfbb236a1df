"""Exported models of the benchmark: how they are made, found, and run in ONNX Runtime within the device's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import contenders
from benchmarks.common.inputs import Inputs, Setting
from benchmarks.contenders import OUTPUTS, Run
from benchmarks.gpu.clock import MissingError
from yolo_assigner.export.contract import Contract, ContractError, find_contracts
from yolo_assigner.export.hyperparameters import Hyperparameters

KIND_OF_TASK = {"assigner": "assigner", "loss": "loss", "loss+grad": "loss_grad"}
ASKED = {**OUTPUTS, "loss+grad": ("loss", "loss_items", "grad_feat_0", "grad_feat_1", "grad_feat_2")}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def find_model(folders: Sequence[Path], kind: str, implementation: str, classes: int) -> tuple[Path, Contract]:
    """Find an exported model in float32.

    Args:
        folders: Folders to search, with the folders in them.
        kind: Kind of the model.
        implementation: ``dense`` or ``sparse``.
        classes: C; ignored for an assigner.

    Raises:
        ContractError: No model fits.
    """
    wanted = (kind, implementation, "fp32", contenders.PRESET)
    for folder in (folder for folder in folders if folder.is_dir()):
        for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
            for path, contract in find_contracts(place) if any(place.glob("*.onnx")) else ():
                its = contract.hyperparameters
                found = (contract.kind, contract.formulation, contract.precision, its["preset"])
                if found == wanted and (kind == "assigner" or its["num_classes"] == classes):
                    return path.with_name(contract.file), contract
    raise ContractError(
        f"no {implementation} model of {classes} classes with preset {contenders.PRESET} in "
        f"{', '.join(map(str, folders))}; `python -m benchmarks.gpu.pack` makes all, --models names their folder"
    )


def prepare(folder: Path, classes: int = 80) -> None:
    """Export the models that a folder lacks.

    Args:
        folder: Folder to write to.
        classes: C.
    """
    from yolo_assigner.export.to_onnx.exporter import export_onnx

    hyperparameters = Hyperparameters(num_classes=classes, preset=contenders.PRESET)
    for kind in KIND_OF_TASK.values():
        for implementation in ("dense", "sparse"):
            try:
                find_model([folder], kind, implementation, classes)
            except ContractError:
                export_onnx(kind, hyperparameters, folder / implementation, implementation=implementation)


def onnx_runtime(setting: Setting, implementation: str, sets: Sequence[Inputs], folders: Sequence[Path]) -> Run:
    """A model in ONNX Runtime with IO binding; a call returns outputs by name, and does not wait for its end.

    Raises:
        MissingError: The installed onnxruntime has no CUDA.
        ContractError: The model is missing.
    """
    path, contract = find_model(folders, KIND_OF_TASK[setting.task], implementation, setting.classes)
    device, asked = sets[0].truth.gt_bboxes.device, ASKED[setting.task]
    session = _session(path, asked, device)
    feeds = [
        {
            # Points of all images have no axis of sets.
            spec.name: value.contiguous() if value.dim() == len(spec.axes) else value[None].contiguous()
            for spec, value in zip(contract.inputs, values, strict=True)
        }
        for values in ([*inputs.predictions, *inputs.truth] for inputs in sets)
    ]
    bindings = [_binding(session, tensors, asked, device) for tensors in feeds]
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(number: int) -> dict[str, Any]:
        session.run_with_iobinding(bindings[number], options)
        return dict(zip(asked, bindings[number].get_outputs(), strict=True))

    run.keep = feeds  # type: ignore[attr-defined]  # a binding holds only addresses
    return run


def check_onnx_runtime(device: torch.device) -> None:
    """Check that ONNX Runtime has CUDA where it is to use a GPU.

    Raises:
        MissingError: It has not.
        ImportError: It is not installed.
    """
    import onnxruntime

    if device.type == "cuda" and CUDA not in onnxruntime.get_available_providers():
        raise MissingError(f"onnxruntime {onnxruntime.__version__} has no {CUDA}; bring onnxruntime-gpu")


def _session(path: Path, outputs: Sequence[str], device: torch.device) -> Any:
    check_onnx_runtime(device)
    import onnx
    import onnxruntime

    from yolo_assigner.serve.inference.runners.onnx_runtime import prune_outputs

    providers: list[Any] = [CPU]
    if device.type == "cuda":
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
    binding, place = session.io_binding(), (device.type, device.index or 0)
    for name, tensor in tensors.items():
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        binding.bind_input(name, *place, dtype, tuple(tensor.shape), tensor.data_ptr())
    for name in outputs:
        binding.bind_output(name, *place)
    return binding

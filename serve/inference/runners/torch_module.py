"""The runner of the torch modules themselves, built from a contract's hyper-parameters; the only one with torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from yolo_assigner.export.contract import DETECTOR_KINDS, Contract
from yolo_assigner.serve.inference.runners.base import Device, RunnerError
from yolo_assigner.serve.wire.dtypes import Array

HALF = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class TorchRunner:
    """Runs a model in torch, in float32 and without autograd: gradients are outputs of the module.

    Args:
        path: The ONNX file; only a detector's weights are read from it.
        contract: Contract of the model.
        device: Where to compute.
        threads: Threads inside one operator, for the whole process; 0: torch's choice.
    """

    platform = "pytorch"
    sizes: Mapping[str, int] = {}

    def __init__(self, path: Path, contract: Contract, device: Device, threads: int = 0) -> None:
        self._path = path
        self._contract = contract
        self._device = device
        self._threads = threads
        self._torch: Any = None
        self._module: Any = None

    @property
    def description(self) -> str:
        """Version and device."""
        return f"torch {version('torch')}, {self._device}"

    def load(self) -> None:
        """Import torch and build the module.

        Raises:
            RunnerError: torch is missing or sees no such device.
        """
        try:
            import torch
        except ImportError as error:
            raise RunnerError(f"torch does not import ({error}); pip install 'yolo-assigner[export]'") from error
        if self._device.kind == "cuda" and self._device.number >= torch.cuda.device_count():
            raise RunnerError(
                f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs, so there is no {self._device}; "
                "choose another --device, or install torch's build for CUDA"
            )
        if self._threads:
            torch.set_num_threads(self._threads)
        self._torch = torch
        self._module = _build(self._path, self._contract).to(str(self._device))

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute all outputs, fetch the named ones."""
        tensors = {spec.name: self._tensor(inputs[spec.name]) for spec in self._contract.inputs}
        maps = [tensors.pop(spec.name) for spec in self._contract.maps]
        with self._torch.no_grad():
            results = self._module(*([maps] if maps else []), *tensors.values())
        # A detector's module returns its raw maps too, after the outputs that the contract names.
        found = {spec.name: result for spec, result in zip(self._contract.outputs, results, strict=False)}
        return {name: found[name].cpu().numpy() for name in outputs}

    def close(self) -> None:
        """Release the module."""
        self._module = None

    def _tensor(self, array: Array) -> Any:
        if array.dtype in HALF:
            array = array.astype(np.float32)
        # torch warns about read-only arrays, which views of a request's bytes are.
        return self._torch.from_numpy(np.require(array, requirements=["C", "W"])).to(str(self._device))


def _build(path: Path, contract: Contract) -> Any:
    from yolo_assigner.export.hyperparameters import Hyperparameters
    from yolo_assigner.export.to_onnx.graphs import build_graph

    hyperparameters = Hyperparameters.from_contract(contract.hyperparameters)
    detector = None
    if contract.kind in DETECTOR_KINDS:
        from yolo_assigner.export.to_onnx.detector import detector_from_onnx

        detector = detector_from_onnx(path, hyperparameters)
    return build_graph(contract.kind, hyperparameters, contract.formulation, detector)

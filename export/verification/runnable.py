"""Run an exported model in ONNX Runtime on the CPU, on torch tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from torch import Tensor

from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.export.runtimes import why_unsupported
from yolo_assigner.export.verification.reference import Inputs, flatten


class CannotRunError(RuntimeError):
    """The installed ONNX Runtime is too old, or has no kernels for a model."""


class Runnable:
    """A model in ONNX Runtime.

    Args:
        model: Path of the model, or the model itself.
        inputs: Its inputs, in the graph's order.

    Raises:
        CannotRunError: ONNX Runtime is too old, or has no CPU kernels for the model's operators and types.
    """

    def __init__(self, model: Path | onnx.ModelProto, inputs: Sequence[TensorSpec]) -> None:
        self._inputs = tuple(inputs)
        reason = why_unsupported(ort.__version__)
        if reason is not None:
            raise CannotRunError(reason)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # failures are raised as exceptions
        source = model if isinstance(model, Path) else model.SerializeToString()
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except NoKernel as error:
            raise CannotRunError(f"ONNX Runtime {ort.__version__} cannot run it on the CPU ({error})") from error

    def __call__(self, inputs: Inputs, outputs: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Compute the outputs of these names."""
        tensors = zip(self._inputs, flatten(inputs), strict=True)
        feed: Mapping[str, Any] = {spec.name: _ort_value(tensor) for spec, tensor in tensors}
        names = list(outputs)
        values = self._session.run_with_ort_values(names, feed)
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def in_types(inputs: Inputs, specs: Sequence[TensorSpec]) -> list[Tensor | list[Tensor]]:
    """Convert inputs to the types of a contract."""
    types = iter([getattr(torch, spec.dtype) for spec in specs])
    return [
        [level.to(next(types)) for level in item] if isinstance(item, list) else item.to(next(types)) for item in inputs
    ]


def _ort_value(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        # numpy does not have this type, so ONNX Runtime is given the bits.
        bits = tensor.view(torch.uint16).numpy()
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor.numpy()))

"""Helpers of the engine tests: installed runtimes, contracts without an export, one-node models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from yolo_assigner.export.contract import Contract, TensorSpec, file_hash
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.specs import input_specs, output_specs
from yolo_assigner.export.to_tensorrt.contract import RUNTIMES
from yolo_assigner.export.to_tensorrt.library import load_library
from yolo_assigner.export.to_tensorrt.profiles import parse_profile


def _installed(runtime: str) -> bool:
    try:
        load_library(runtime)
    except ValueError:
        return False
    return True


# Sizes with a short build.
SMALL = parse_profile(["B=1,2,4", "M=0,3,8", "imgsz=64,96,128"])
# The development environment has at least TensorRT-RTX.
INSTALLED = [runtime for runtime in RUNTIMES if _installed(runtime)]


def described(kind: str, hyperparameters: Hyperparameters | None = None) -> Contract:
    """Return the contract that a dense export of a model kind would have."""
    hyperparameters = hyperparameters or Hyperparameters()
    inputs, outputs = input_specs(kind, hyperparameters), output_specs(kind, hyperparameters)
    values = hyperparameters.as_contract()
    return Contract(kind, kind, f"{kind}.onnx", "0" * 64, "dense", values, inputs, outputs, {})


def write_tiny(folder: Path, node: onnx.NodeProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Path:
    """Write a model of one node with the contract of a loss."""
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    taken, given = (
        [helper.make_tensor_value_info(spec.name, types[spec.dtype], list(spec.axes)) for spec in specs]
        for specs in (inputs, outputs)
    )
    graph = helper.make_graph([node], "tiny", taken, given)
    path = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    contract = dataclasses.replace(
        described("loss"),
        name="tiny",
        file=path.name,
        sha256=file_hash(path),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )
    contract.save(path.with_suffix(".json"))
    return path

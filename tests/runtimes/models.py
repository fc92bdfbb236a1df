"""The exported models to run."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx

from tests.exports import exported
from yolo_assigner.export.contract import load_contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.specs import map_specs

KINDS = ("assigner", "loss", "loss_grad", "detector_loss")
IMPLEMENTATIONS = ("sparse", "dense")


def runnable_model(kind: str, implementation: str, folder: Path) -> Path:
    """Write a model's ONNX file and its contract to a folder. A detector's raw maps become outputs.

    What follows the maps is compared from them.
    """
    source = exported(kind, implementation)
    path = folder / f"{kind}_{implementation}.onnx"
    shutil.copy(source / f"{kind}.json", path.with_suffix(".json"))
    contract = load_contract(path.with_suffix(".json"))
    model = onnx.load(source / f"{kind}.onnx")
    for spec in map_specs(kind, Hyperparameters.from_contract(contract.hyperparameters)):
        model.graph.output.append(onnx.helper.make_tensor_value_info(spec.name, onnx.TensorProto.FLOAT, spec.axes))
    onnx.save(model, path)
    return path

"""The torch runner gives the results of the exported files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tests.serve.conftest import ROOT, graph_inputs, loss_inputs
from yolo_assigner.export.contract import Contract, load_contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.specs import input_specs, output_specs
from yolo_assigner.export.to_onnx.detector import COUNTER, PREFIX
from yolo_assigner.models import DetectionModel, DetectorConfig
from yolo_assigner.serve.inference.runners.base import HOST, Device, RunnerError
from yolo_assigner.serve.inference.runners.onnx_runtime import OnnxRuntimeRunner
from yolo_assigner.serve.inference.runners.torch_module import TorchRunner
from yolo_assigner.serve.inference.runners.warm_up import warm_up
from yolo_assigner.serve.wire.dtypes import Array
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.predictions import join_predictions


def runners(folder: Path, kind: str) -> tuple[TorchRunner, OnnxRuntimeRunner]:
    contract = load_contract(folder / f"{kind}.json")
    path = folder / contract.file
    both = TorchRunner(path, contract, HOST), OnnxRuntimeRunner(path, contract.default_outputs, threads=1)
    for runner in both:
        warm_up(runner, contract)
    return both


def inputs_of(kind: str, slots: int) -> dict[str, Array]:
    return graph_inputs(slots=slots, classes=3) if kind == "assigner" else loss_inputs(slots=slots)


@pytest.mark.parametrize("kind", ["assigner", "loss", "loss_grad"])
@pytest.mark.parametrize("folder", ["artifacts_dir", "dense_dir"])
def test_results_are_those_of_the_exported_file(folder: str, kind: str, request: pytest.FixtureRequest) -> None:
    artifacts = request.getfixturevalue(folder)
    ours, onnx = runners(artifacts, kind)
    names = [spec.name for spec in load_contract(artifacts / f"{kind}.json").outputs]
    for slots in (3, 0):
        inputs = inputs_of(kind, slots)
        results, expected = ours.infer(inputs, names), onnx.infer(inputs, names)
        assert list(results) == names
        for name in names:
            assert results[name].dtype == expected[name].dtype
            if expected[name].dtype.kind == "f":
                np.testing.assert_allclose(results[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(results[name], expected[name], err_msg=name)
        assert expected["fg_mask"].any() == bool(slots)


def test_arrays_that_must_not_be_written_to(artifacts_dir: Path) -> None:
    """A request's tensors may lie in its bytes, of which torch warns; warnings are errors here."""
    ours, _ = runners(artifacts_dir, "loss_grad")
    inputs = loss_inputs()
    expected = ours.infer(inputs, ["grad_feat_0"])["grad_feat_0"]
    for array in inputs.values():
        array.setflags(write=False)
    np.testing.assert_array_equal(ours.infer(inputs, ["grad_feat_0"])["grad_feat_0"], expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_maps_in_half_precision_are_computed_with_in_float32(artifacts_dir: Path, dtype: Any) -> None:
    """As an exported model of that precision does; torch itself knows no bfloat16 of numpy's."""
    ours, onnx_runtime = runners(artifacts_dir, "loss")
    inputs = loss_inputs()
    rounded = {name: array.astype(dtype) if name.startswith("feat") else array for name, array in inputs.items()}
    expected = onnx_runtime.infer({name: array.astype(inputs[name].dtype) for name, array in rounded.items()}, ["loss"])
    np.testing.assert_allclose(ours.infer(rounded, ["loss"])["loss"], expected["loss"], rtol=1e-5)


def test_a_detectors_weights_come_from_its_file(tmp_path: Path) -> None:
    """The runner reads nothing of the file but the weights, so a file of nothing else will do."""
    numbers = Hyperparameters(num_classes=3, scale="n")
    torch.manual_seed(0)
    detector = DetectionModel(DetectorConfig("n", 3)).eval()
    weights = [
        numpy_helper.from_array(tensor.numpy(), f"{PREFIX}{name}")
        for name, tensor in detector.state_dict().items()
        if not name.endswith(COUNTER)
    ]
    onnx.save(helper.make_model(helper.make_graph([], "weights", [], [], weights)), tmp_path / "detector.onnx")
    specs = input_specs("detector_loss", numbers), output_specs("detector_loss", numbers)
    contract = Contract(
        "detector", "detector_loss", "detector.onnx", "", "sparse", numbers.as_contract(), *specs, versions={}
    )
    runner = TorchRunner(tmp_path / "detector.onnx", contract, HOST)
    warm_up(runner, contract)
    inputs = loss_inputs(side=64)
    images = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    truth = {name: array for name, array in inputs.items() if not name.startswith("feat")}
    results = runner.infer({"images": images, **truth}, ["predictions", "loss"])
    with torch.no_grad():
        predictions, maps = detector(torch.from_numpy(images))
        joined = join_predictions(maps, numbers.strides, 3, 16)
        loss = DetectionLoss(3).from_padded(joined, GroundTruth(*map(torch.from_numpy, truth.values()))).loss
    np.testing.assert_allclose(results["predictions"], predictions, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(results["loss"], loss, rtol=1e-5)


def test_a_device_that_torch_does_not_see(artifacts_dir: Path) -> None:
    contract = load_contract(artifacts_dir / "loss.json")
    with pytest.raises(RunnerError, match=r"sees \d+ GPUs, so there is no cuda:999; choose another --device"):
        TorchRunner(artifacts_dir / "loss.onnx", contract, Device("cuda", 999)).load()


def test_torch_is_imported_only_when_it_is_loaded() -> None:
    code = """
import sys
import yolo_assigner.serve.inference.runners.choice
import yolo_assigner.serve.inference.runners.torch_module
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"

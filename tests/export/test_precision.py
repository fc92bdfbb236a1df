"""Models in 16 bits: what is narrowed, what stays in float32, and how they are verified."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto

from tests.export.engines import INSTALLED
from tests.exports import exported_by_command
from yolo_assigner.export import cli
from yolo_assigner.export.contract import PRECISIONS, Contract, file_hash, find_contracts, load_contract
from yolo_assigner.export.to_onnx.detector import load_detector_weights
from yolo_assigner.export.to_onnx.precision import narrow
from yolo_assigner.export.to_tensorrt.library import load_library
from yolo_assigner.export.verification.runnable import CannotRunError
from yolo_assigner.export.verification.verify import verify_model, verify_network

ELEMENTS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
HALF = [*ELEMENTS]


def read(folder: Path, name: str) -> tuple[onnx.ModelProto, Contract]:
    """Load a model in float32."""
    return onnx.load(folder / f"{name}.onnx"), load_contract(folder / f"{name}.json")


def write(model: onnx.ModelProto, contract: Contract, folder: Path) -> Path:
    """Write a model and its contract as the command does."""
    path = folder / contract.file
    onnx.save(model, path)
    dataclasses.replace(contract, sha256=file_hash(path)).save(path.with_suffix(".json"))
    return path


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value except inputs."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("kind", ["assigner", "loss_grad"])
def test_predictions_come_in_16_bits_and_results_are_as_exact_as_before(
    artifacts_dir: Path, tmp_path: Path, kind: str, precision: str
) -> None:
    model, contract = narrow(*read(artifacts_dir, kind), precision)
    differences = verify_model(write(model, contract, tmp_path), contract)
    assert {d.output for d in differences} == {spec.name for spec in contract.outputs}
    assert [d for d in differences if not d.passed] == []
    # Only inputs are narrow, so no precision is lost inside the graph.
    assert ELEMENTS[precision] not in types(model).values()


@pytest.mark.parametrize("precision", HALF)
def test_only_precision_and_types_of_the_contract_change(artifacts_dir: Path, precision: str) -> None:
    for kind, narrowed in (("assigner", {"pd_scores"}), ("loss", {"feat_0", "feat_1", "feat_2"})):
        wide, before = read(artifacts_dir, kind)
        model, after = narrow(wide, before, precision)
        assert dataclasses.replace(after, precision="fp32", inputs=before.inputs) == before
        assert {spec.name for spec in after.inputs if spec.dtype == PRECISIONS[precision]} == narrowed
        for old, new, value in zip(before.inputs, after.inputs, model.graph.input, strict=True):
            assert dataclasses.replace(new, dtype=old.dtype) == old
            assert (value.name, value.type.tensor_type.elem_type == ELEMENTS[precision]) == (
                new.name,
                new.name in narrowed,
            )
        assert wide == onnx.load(artifacts_dir / f"{kind}.onnx")


def test_the_network_is_narrow_up_to_its_maps(detector_dir: Path, tmp_path: Path) -> None:
    model, contract = narrow(*read(detector_dir, "detector_loss"), "fp16")
    assert [(spec.name, spec.dtype) for spec in contract.inputs][:3] == [
        ("images", "float16"),
        ("gt_labels", "int64"),
        ("gt_bboxes", "float32"),
    ]
    kinds, weights = types(model), {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    # Decoding is a convolution too, whose weights are the bin numbers, but it follows the network.
    bins = "detector.model.22.dfl.conv.weight"
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "BatchNormalization", "MaxPool", "Resize")]
    assert [node.input[1] for node in layers if kinds[node.output[0]] == TensorProto.FLOAT] == [bins]
    wide_weights = [name for name in weights if name.startswith("detector.") and weights[name] == TensorProto.FLOAT]
    assert wide_weights == [bins]
    assert [kinds[f"map_{level}"] for level in range(3)] == [TensorProto.FLOAT] * 3
    path = write(model, contract, tmp_path)
    wide, half = (load_detector_weights(p) for p in (detector_dir / "detector_loss.onnx", path))
    assert all(torch.equal(half[name], tensor.half().float()) for name, tensor in wide.items())


def test_rounding_of_a_narrow_network_is_within_its_tolerance(detector_dir: Path, tmp_path: Path) -> None:
    model, contract = narrow(*read(detector_dir, "detector_loss"), "fp16")
    differences = verify_network(write(model, contract, tmp_path), contract)
    assert [d for d in differences if not d.passed] == []
    # More than float32 would, which shows that it computes in 16 bits.
    assert min(d.largest for d in differences if d.output.startswith("map_")) > 1e-4


def test_a_model_that_cannot_run_here_is_reported_as_unverified(
    detector_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, contract = narrow(*read(detector_dir, "detector_loss"), "bf16")
    assert [opset.version for opset in model.opset_import] == [22]
    assert contract.versions["opset"] == "22"
    path = write(model, contract, tmp_path)
    with pytest.raises(CannotRunError, match="cannot run it on the CPU"):
        verify_model(path, contract)
    assert cli.main(["verify", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "detector_loss (bf16) is not verified: ONNX Runtime" in captured.out
    assert captured.err == "error: detector_loss cannot be run on this machine\n"


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("runtime", INSTALLED)
def test_tensorrt_takes_a_narrow_detector(dense_detector_dir: Path, runtime: str, precision: str) -> None:
    model, _ = narrow(*read(dense_detector_dir, "detector_loss"), precision)
    library = load_library(runtime)
    logger = library.Logger(library.Logger.ERROR)
    network = library.Builder(logger).create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert network.get_input(0).dtype == {"fp16": library.float16, "bf16": library.bfloat16}[precision]
    halves = {library.float16, library.bfloat16}
    assert halves.isdisjoint(network.get_output(i).dtype for i in range(network.num_outputs))


def test_a_weight_beyond_float16_is_refused(detector_dir: Path) -> None:
    model, contract = read(detector_dir, "detector_loss")
    name = "detector.model.4.cv1.bn.running_var"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] = 1e5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    with pytest.raises(ValueError, match=rf"weight {name} reaches 1e\+05, FLOAT16 only 6.55e\+04; take bf16"):
        narrow(model, contract, "fp16")
    narrow(model, contract, "bf16")


def test_a_narrow_model_cannot_be_converted(artifacts_dir: Path) -> None:
    wide = read(artifacts_dir, "assigner")
    assert narrow(*wide, "fp32") == wide
    half = narrow(*wide, "fp16")
    assert narrow(*half, "fp16") == half
    with pytest.raises(ValueError, match="assigner is in fp16, bf16 needs the model in fp32"):
        narrow(*half, "bf16")
    with pytest.raises(ValueError, match="precision is 'fp8'; choose one of fp32, fp16, bf16"):
        narrow(*wide, "fp8")


def test_command_line_writes_a_narrow_model(capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported_by_command("--model assigner --num-classes 2 --precision bf16 --for tensorrt")
    ((path, contract),) = find_contracts(folder)
    assert (contract.precision, contract.inputs[0].dtype) == ("bf16", "bfloat16")
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == TensorProto.BFLOAT16
    assert cli.main(["verify", str(folder)]) == 0
    assert "assigner (assigner, dense, bf16)" in capsys.readouterr().out

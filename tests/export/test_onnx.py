"""Exported files, their contracts, and verification, which must detect what an export breaks."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnxscript import optimizer

from tests.conftest import KINDS
from tests.exports import TINY, exported_by_command
from yolo_assigner.export import cli
from yolo_assigner.export.contract import file_hash, find_contracts, load_contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case, pyramid, sample_inputs
from yolo_assigner.export.verification.reference import flatten
from yolo_assigner.export.verification.verify import verify_model


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("folder", ["artifacts_dir", "dense_dir"])
def test_every_output_agrees_with_float64(folder: str, name: str, request: pytest.FixtureRequest) -> None:
    artifacts: Path = request.getfixturevalue(folder)
    contract = load_contract(artifacts / f"{name}.json")
    differences = verify_model(artifacts / f"{name}.onnx", contract)
    assert {d.output for d in differences} == {spec.name for spec in contract.outputs}
    assert [d for d in differences if not d.passed] == []


@pytest.mark.parametrize("name", KINDS)
def test_contract_describes_the_graph(artifacts_dir: Path, name: str) -> None:
    contract = load_contract(artifacts_dir / f"{name}.json")
    session = ort.InferenceSession(artifacts_dir / f"{name}.onnx", providers=["CPUExecutionProvider"])
    types = {"float32": "tensor(float)", "int64": "tensor(int64)", "bool": "tensor(bool)"}
    for specs, nodes in ((contract.inputs, session.get_inputs()), (contract.outputs, session.get_outputs())):
        assert [(spec.name, types[spec.dtype]) for spec in specs] == [(node.name, node.type) for node in nodes]
        for spec, node in zip(specs, nodes, strict=True):
            assert len(spec.axes) == len(node.shape)
            fixed = [(axis, size) for axis, size in zip(spec.axes, node.shape, strict=True) if isinstance(axis, int)]
            assert all(axis == size for axis, size in fixed), spec.name
    for spec, node in zip(contract.inputs, session.get_inputs(), strict=True):
        dynamic = [size for axis, size in zip(spec.axes, node.shape, strict=True) if isinstance(axis, str)]
        assert all(isinstance(size, str) for size in dynamic), f"{spec.name} lost a dynamic axis: {node.shape}"


def test_contract_has_all_hyperparameters(artifacts_dir: Path) -> None:
    values = load_contract(artifacts_dir / "loss.json").hyperparameters
    assert values["gains"] == {"box": 7.5, "cls": 0.5, "dfl": 1.5}
    assert (values["topk"], values["alpha"], values["beta"], values["eps"]) == (10, 0.5, 6.0, 1e-9)
    assert (values["num_classes"], values["strides"], values["reg_max"]) == (3, [8.0, 16.0, 32.0], 16)
    restored = Hyperparameters.from_contract(values)
    assert restored.as_contract() == values


def test_file_has_no_local_paths(artifacts_dir: Path) -> None:
    for name in KINDS:
        content = (artifacts_dir / f"{name}.onnx").read_bytes()
        assert not re.search(rb"site-packages|\.py\b", content)


@pytest.mark.parametrize("name", KINDS)
def test_dense_graphs_have_only_operators_of_tensorrt(dense_dir: Path, name: str) -> None:
    # Its parser supports neither scatter with reduction nor sequences, and needs constant axes for reductions. A loop
    # would keep it from fusing.
    graph = onnx.load(dense_dir / f"{name}.onnx").graph
    produced = {output for node in graph.node for output in node.output if node.op_type != "Constant"}
    unwanted = {"NonZero", "Compress", "SplitToSequence", "SequenceAt", "Scan", "Loop", "If"}
    assert not {node.op_type for node in graph.node} & unwanted
    for node in graph.node:
        reductions = [attribute.s for attribute in node.attribute if attribute.name == "reduction"]
        assert reductions in ([], [b"none"]), f"{node.name} reduces"
        if node.op_type.startswith("Reduce") and len(node.input) > 1:
            assert node.input[1] not in produced, f"{node.name} reduces over computed axes"


def test_sparse_losses_read_maps_image_by_image(artifacts_dir: Path) -> None:
    # Decoding and class term.
    loops = [node for node in onnx.load(artifacts_dir / "loss.onnx").graph.node if node.op_type == "Scan"]
    assert len(loops) == 2
    assert all({"Exp", "Slice"} <= {inner.op_type for inner in body_of(loop).node} for loop in loops)


def body_of(loop: onnx.NodeProto) -> onnx.GraphProto:
    body: onnx.GraphProto = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    return body


def test_a_lost_eps_is_detected(artifacts_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The exporter's default: its optimizer treats 1e-9 as zero.
    model = optimizer.optimize(onnx.load(artifacts_dir / "assigner.onnx"))
    onnx.save(model, tmp_path / "assigner.onnx")
    contract = load_contract(artifacts_dir / "assigner.json")
    dataclasses.replace(contract, sha256=file_hash(tmp_path / "assigner.onnx")).save(tmp_path / "assigner.json")
    assert cli.main(["verify", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "past their tolerance" in captured.err


def test_command_line_writes_what_verify_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported_by_command(TINY)
    ((path, contract),) = find_contracts(folder)
    assert (path.name, contract.name, contract.kind) == ("tiny.onnx", "tiny", "loss")
    assert contract.hyperparameters["min_box_side"] == 16.0
    assert [spec.name for spec in contract.inputs[:2]] == ["feat_0", "feat_1"]
    assert cli.main(["verify", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "tiny (loss, sparse)" in printed
    assert printed.rstrip().splitlines()[-1].startswith("| tiny | sparse | fp32 | 0 | ")
    assert printed.rstrip().endswith("| ok |")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset nothing", "preset is 'nothing'"),
        ("--topk 0", "topk is 0"),
        ("--implementation magic", "implementation is 'magic'"),
        ("--formulation magic", "implementation is 'magic'"),
        ("--formulation auto", "implementation is 'auto', but a graph has one"),
        ("--class-loss mse", "class_loss is 'mse'"),
        ("--gains 1,2", "gains"),
        ("--strides 8,-16", "strides"),
    ],
)
def test_command_line_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert cli.main(["onnx", "--model", "loss", "--out", str(tmp_path), *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("warning: --formulation is now --implementation") == ("--formulation" in words)
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_graph_takes_sizes_far_from_the_traced_ones(artifacts_dir: Path) -> None:
    contract = load_contract(artifacts_dir / "loss.json")
    session = ort.InferenceSession(artifacts_dir / "loss.onnx", providers=["CPUExecutionProvider"])
    case = Case(1, 150, pyramid(32, 1280, (8.0, 16.0, 32.0)), 3)
    inputs = sample_inputs("loss", Hyperparameters(num_classes=3), case, seed=0)
    feed = {spec.name: t.numpy() for spec, t in zip(contract.inputs, flatten(inputs), strict=True)}
    weights, mask = session.run(["target_weights", "fg_mask"], feed)
    assert weights.shape == mask.shape == (1, 4 * 160 + 2 * 80 + 40)
    assert mask.any()


def test_json_is_what_the_documentation_says(artifacts_dir: Path) -> None:
    data = json.loads((artifacts_dir / "assigner.json").read_text(encoding="utf-8"))
    assert data["inputs"][0] == {"name": "pd_scores", "dtype": "float32", "axes": ["B", "A", "C"], "heavy": False}
    assert [spec["name"] for spec in data["outputs"] if spec["heavy"]] == ["target_scores"]
    assert {"yolo-assigner", "torch", "onnx", "onnxscript", "opset"} == set(data["versions"])

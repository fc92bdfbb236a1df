"""Models that TensorRT does not build, and the error messages."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from tests.export.engines import INSTALLED, SMALL, write_tiny
from yolo_assigner.export.contract import ContractError, TensorSpec, load_contract
from yolo_assigner.export.to_tensorrt.build import BuildError, build_engine
from yolo_assigner.export.to_tensorrt.profiles import parse_profile


def test_a_capability_that_would_compute_zeros_is_refused(dense_dir: Path, tmp_path: Path) -> None:
    # The loss has matrix products in float32, the assigner does not.
    options: dict[str, Any] = {"runtime": "tensorrt-rtx", "profiles": [SMALL], "compute_capabilities": ["8.9", "7.5"]}
    with pytest.raises(BuildError, match=r"7\.5 has no float32 matrix products .* which node node_matmul"):
        build_engine(dense_dir / "loss.onnx", tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
    build_engine(dense_dir / "assigner.onnx", tmp_path, **options)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_refused_graph_is_quoted_by_node_and_operator(artifacts_dir: Path, tmp_path: Path, runtime: str) -> None:
    # The sparse implementation with a contract that says dense: the parser does not support 15 of its nodes.
    shutil.copy(artifacts_dir / "loss.onnx", tmp_path)
    dataclasses.replace(load_contract(artifacts_dir / "loss.json"), formulation="dense").save(tmp_path / "loss.json")
    with pytest.raises(BuildError) as caught:
        build_engine(tmp_path / "loss.onnx", tmp_path, runtime=runtime)
    lines = str(caught.value).splitlines()
    assert lines[0] == "TensorRT refuses loss.onnx:"
    assert lines[1].startswith("  node node_Compress_")
    assert " (Compress): UNSUPPORTED_NODE" in lines[1]
    assert lines[6] == "  and 10 more"
    assert lines[7] == "TensorRT warned before:"


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_graph_that_parses_and_cannot_be_built_is_quoted(tmp_path: Path, runtime: str) -> None:
    # 2 and 3 rows cannot be added, which TensorRT detects only when both sizes are fixed.
    rows = [TensorSpec("x", "float32", ("B", 4)), TensorSpec("y", "float32", ("M", 4))]
    adder = helper.make_node("Add", ["x", "y"], ["z"], name="adder")
    model = write_tiny(tmp_path, adder, rows, [TensorSpec("z", "float32", ("P", 4))])
    with pytest.raises(BuildError, match=r"builds no engine of tiny\.onnx:\n.*adder: broadcast dimensions"):
        build_engine(model, tmp_path / "out", runtime=runtime, profiles=[parse_profile(["B=2", "M=3"])])
    assert not (tmp_path / "out").exists()
    # With equal sizes the same file is built, so the graph is valid.
    build_engine(model, tmp_path / "out", runtime=runtime, profiles=[parse_profile(["B=3", "M=3"])])


@pytest.fixture
def copy(dense_dir: Path, tmp_path: Path) -> Path:
    """A copy of the dense assigner to modify."""
    for name in ("assigner.onnx", "assigner.json"):
        shutil.copy(dense_dir / name, tmp_path)
    return tmp_path


Change = Callable[[tuple[TensorSpec, ...]], tuple[TensorSpec, ...]]


@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize(
    ("side", "change", "message"),
    [
        (
            "inputs",
            lambda specs: specs[1:],
            r"the inputs of assigner.onnx are .'pd_scores'.* contract says .'pd_bboxes'",
        ),
        ("outputs", lambda specs: specs[::-1], r"the outputs of assigner.onnx are .'target_labels'"),
        (
            "inputs",
            lambda specs: (dataclasses.replace(specs[0], dtype="float16"), *specs[1:]),
            "pd_scores of assigner.onnx is float32 .* says float16",
        ),
        (
            "outputs",
            lambda specs: (*specs[:-1], dataclasses.replace(specs[-1], axes=("B",))),
            r"target_weights of assigner.onnx is float32 of shape \(-1, -1\) .* says float32 of \('B',\)",
        ),
        (
            "inputs",
            lambda specs: (specs[0], dataclasses.replace(specs[1], axes=("B", "A", 5)), *specs[2:]),
            r"pd_bboxes of assigner.onnx .* shape \(-1, -1, 4\) .* \('B', 'A', 5\)",
        ),
    ],
)
def test_a_contract_of_other_tensors(copy: Path, runtime: str, side: str, change: Change, message: str) -> None:
    contract = load_contract(copy / "assigner.json")
    changed: dict[str, Any] = {side: change(getattr(contract, side))}
    dataclasses.replace(contract, **changed).save(copy / "assigner.json")
    with pytest.raises(ContractError, match=message):
        build_engine(copy / "assigner.onnx", copy, runtime=runtime, profiles=[SMALL])


def test_a_model_that_is_not_the_one_described(copy: Path) -> None:
    model = copy / "assigner.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(ContractError, match=r"assigner.onnx is not the file that assigner.json describes"):
        build_engine(model, copy, runtime="tensorrt-rtx")


@pytest.mark.parametrize("missing", ["assigner.onnx", "assigner.json"])
def test_a_model_without_its_other_half(copy: Path, missing: str) -> None:
    (copy / missing).unlink()
    with pytest.raises(ContractError, match=rf"{missing} is not there; export the model with"):
        build_engine(copy / "assigner.onnx", copy, runtime="tensorrt-rtx")


def test_a_sparse_model_is_refused_before_the_build(artifacts_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss.onnx is sparse, which .*yolo-assigner export onnx --for tensorrt"):
        build_engine(artifacts_dir / "loss.onnx", tmp_path, runtime="tensorrt-rtx")


def test_unknown_options(dense_dir: Path, tmp_path: Path) -> None:
    model = dense_dir / "assigner.onnx"
    with pytest.raises(ValueError, match="precision is 'fp8'; choose one of fp32, fp16, bf16"):
        build_engine(model, tmp_path, runtime="tensorrt-rtx", precision="fp8")
    with pytest.raises(ValueError, match="runtime is 'onnx', but an engine is of tensorrt or tensorrt-rtx"):
        build_engine(model, tmp_path, runtime="onnx")


@pytest.mark.skipif("tensorrt" in INSTALLED, reason="TensorRT is installed")
def test_a_runtime_that_is_not_installed_says_how_to_get_it(dense_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensorrt does not import .*pip install \"yolo-assigner\[tensorrt\]\""):
        build_engine(dense_dir / "assigner.onnx", tmp_path, runtime="tensorrt")

"""The engine on toy graphs: what is not asked for is not computed, and a failure is not the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serve.engine import OnnxRuntimeEngine


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """``double`` = 2 x, and ``heavy`` = x reshaped to (2, 2), which fails at run time unless x has 4 values."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["double"]), helper.make_node("Reshape", ["x", "shape"], ["heavy"])],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [
            helper.make_tensor_value_info("double", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("heavy", TensorProto.FLOAT, [2, 2]),
        ],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [2, 2])],
    )
    path = tmp_path / "toy.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_heavy_outputs_are_not_computed_unless_named(toy: Path) -> None:
    engine = OnnxRuntimeEngine(toy, ["double"], threads=1)
    engine.load()
    three, four = (np.arange(size, dtype=np.float32) for size in (3, 4))
    assert engine.infer({"x": three}, ["double"])["double"].tolist() == [0, 2, 4]
    with pytest.raises(Exception, match="Reshape"):
        engine.infer({"x": three}, ["double", "heavy"])
    outputs = engine.infer({"x": four}, ["heavy", "double"])
    assert list(outputs) == ["heavy", "double"]
    assert outputs["heavy"].tolist() == [[0, 1], [2, 3]]
    assert engine.infer({"x": three}, ["double"])["double"].tolist() == [0, 2, 4]


def test_one_session_is_enough_without_heavy_outputs(toy: Path) -> None:
    engine = OnnxRuntimeEngine(toy, ["double", "heavy"])
    engine.load()
    assert engine._small is engine._whole


def test_what_branches_read_is_kept(tmp_path: Path) -> None:
    """``hidden`` is read only inside the branches of an If, which is not listed among that node's inputs."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Add", ["hidden", "hidden"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"])],
        )
        for name in ("then", "else")
    }
    nodes = [
        helper.make_node("Neg", ["x"], ["hidden"]),
        helper.make_node("Exp", ["hidden"], ["heavy"]),
        helper.make_node("If", ["yes"], ["light"], **branches),
    ]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "heavy", "light")}
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    graph = helper.make_graph(nodes, "branches", [values["x"]], [values["heavy"], values["light"]], [yes])
    path = tmp_path / "branches.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    engine = OnnxRuntimeEngine(path, ["light"], threads=1)
    engine.load()
    assert engine.infer({"x": np.ones(2, np.float32)}, ["light"])["light"].tolist() == [-2, -2]

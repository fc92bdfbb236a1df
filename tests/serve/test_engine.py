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

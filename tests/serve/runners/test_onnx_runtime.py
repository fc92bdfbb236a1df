"""ONNX Runtime on toy graphs: only requested outputs are computed, and failures leave the runner usable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from yolo_assigner.serve.inference.runners import onnx_runtime
from yolo_assigner.serve.inference.runners.base import Device, RunnerError
from yolo_assigner.serve.inference.runners.onnx_runtime import (
    CPU,
    CUDA,
    MOST_SESSIONS,
    TENSORRT,
    OnnxRuntimeRunner,
    execution_providers,
)


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
    runner = OnnxRuntimeRunner(toy, ["double"], threads=1)
    runner.load()
    three, four = (np.arange(size, dtype=np.float32) for size in (3, 4))
    assert runner.infer({"x": three}, ["double"])["double"].tolist() == [0, 2, 4]
    with pytest.raises(Exception, match="Reshape"):
        runner.infer({"x": three}, ["double", "heavy"])
    outputs = runner.infer({"x": four}, ["heavy", "double"])
    assert list(outputs) == ["heavy", "double"]
    assert outputs["heavy"].tolist() == [[0, 1], [2, 3]]
    assert runner.infer({"x": three}, ["double"])["double"].tolist() == [0, 2, 4]


def test_one_session_is_enough_without_heavy_outputs(toy: Path) -> None:
    runner = OnnxRuntimeRunner(toy, ["double", "heavy"])
    runner.load()
    assert len(runner.sessions) == 1


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
    runner = OnnxRuntimeRunner(path, ["light"], threads=1)
    runner.load()
    assert runner.infer({"x": np.ones(2, np.float32)}, ["light"])["light"].tolist() == [-2, -2]


def save(path: Path, nodes: list[onnx.NodeProto], inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Path:
    """Write a graph of lists."""
    taken, given = (
        [helper.make_tensor_value_info(name, kind, ["N"]) for name, kind in side.items()] for side in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "graph", taken, given)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_each_set_of_outputs_has_a_session_until_there_are_enough(tmp_path: Path) -> None:
    """Output ``n`` is x + n. Which session answers must not be seen in the results."""
    numbers = range(5)
    nodes = [helper.make_node("Identity", ["x"], ["0"])]
    nodes += [helper.make_node("Add", [str(n - 1), "one"], [str(n)]) for n in numbers[1:]]
    nodes.insert(0, helper.make_node("Constant", [], ["one"], value_float=1.0))
    path = save(tmp_path / "n.onnx", nodes, {"x": TensorProto.FLOAT}, {str(n): TensorProto.FLOAT for n in numbers})
    runner = OnnxRuntimeRunner(path, ["0", "1"], threads=1)
    runner.load()
    assert len(runner.sessions) == 2
    for names in (["1"], ["0"], ["4", "2"], ["3"], ["1", "0"], ["2", "4"], ["4", "3", "2", "1", "0"]) * 2:
        outputs = runner.infer({"x": np.zeros(2, np.float32)}, names)
        assert {name: array.tolist() for name, array in outputs.items()} == {name: [int(name)] * 2 for name in names}
        assert list(outputs) == names
    # "1" and "0" took the last places; what came later runs in the whole graph.
    assert MOST_SESSIONS == 4
    assert {"".join(sorted(names)) for names in runner.sessions} == {"01234", "01", "1", "0"}
    assert [output.name for output in runner.session_of(frozenset({"4"})).get_outputs()] == list("01234")


def test_results_belong_to_the_caller(toy: Path) -> None:
    """What one call gave must not change when the next reuses the session's memory."""
    runner = OnnxRuntimeRunner(toy, ["double"], threads=1)
    runner.load()
    first = runner.infer({"x": np.ones(4, np.float32)}, ["double"])["double"]
    second = runner.infer({"x": np.zeros(4, np.float32)}, ["double"])["double"]
    second += 5
    assert first.tolist() == [2, 2, 2, 2]


def test_strided_and_empty_inputs(toy: Path) -> None:
    """Addresses are handed over, so an array must be laid out as it is read."""
    runner = OnnxRuntimeRunner(toy, ["double"], threads=1)
    runner.load()
    assert runner.infer({"x": np.arange(8, dtype=np.float32)[::-2]}, ["double"])["double"].tolist() == [14, 10, 6, 2]
    assert runner.infer({"x": np.zeros(0, np.float32)}, ["double"])["double"].shape == (0,)


@pytest.mark.parametrize("values", [[], [1.5, -2.0, 3.0]])
def test_bfloat16_inputs(tmp_path: Path, values: list[float]) -> None:
    """There is no such type in numpy itself, and ONNX Runtime's Python takes no array of it."""
    nodes = [helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT)]
    path = save(tmp_path / "half.onnx", nodes, {"x": TensorProto.BFLOAT16}, {"wide": TensorProto.FLOAT})
    runner = OnnxRuntimeRunner(path, ["wide"], threads=1)
    runner.load()
    assert runner.infer({"x": np.array(values, ml_dtypes.bfloat16)}, ["wide"])["wide"].tolist() == values


def test_a_provider_that_is_not_built_in(toy: Path) -> None:
    for device, provider in ((Device("cuda", 1), None), (Device("cuda"), TENSORRT)):
        runner = OnnxRuntimeRunner(toy, ["double"], device, provider)
        with pytest.raises(RunnerError, match=rf"no {provider or CUDA}, only .*{CPU}; install onnxruntime-gpu"):
            runner.load()


def test_a_provider_that_does_not_start(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime then takes the CPU without a word: here it is really asked for a GPU, only the list is forged."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    runner = OnnxRuntimeRunner(toy, ["double"], Device("cuda"))
    with (
        pytest.warns(UserWarning, match=CUDA),
        pytest.raises(RunnerError, match=f"{CUDA} did not start, .* took {CPU}"),
    ):
        runner.load()


def test_a_provider_that_is_refused_is_neither_printed_nor_replaced(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's Python would write to standard output and try again on the CPU."""
    unknown = "NoSuchExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [unknown, CPU])
    monkeypatch.setattr(onnx_runtime, "TENSORRT", unknown)
    runner = OnnxRuntimeRunner(toy, ["double"], Device("cuda"), unknown)
    refusal = pytest.raises(RuntimeError, match=f"Unknown Provider Type: {unknown}")
    with pytest.warns(UserWarning, match="is not in available provider names"), refusal:
        runner.load()
    assert capsys.readouterr().out == ""


def test_products_are_not_rounded_and_the_cpu_comes_last() -> None:
    providers = execution_providers(CUDA, Device("cuda", 2))
    assert providers == [(CUDA, {"device_id": 2, "use_tf32": 0}), (CPU, {})]
    names = [name for name, _ in execution_providers(TENSORRT, Device("cuda"))]
    assert names == [TENSORRT, CUDA, CPU]

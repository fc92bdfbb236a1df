"""Memory, profiles and outputs of an execution context, on the simulated GPU of `fake_gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.serve.conftest import graph_inputs
from tests.serve.runners.fake_gpu import Context, HostMemory
from yolo_assigner.export.contract import Contract, TensorSpec, load_contract
from yolo_assigner.export.to_tensorrt.contract import EngineContract, Profile
from yolo_assigner.export.to_tensorrt.library import load_library
from yolo_assigner.serve.inference.runners.tensorrt import Buffer, Execution
from yolo_assigner.serve.wire.dtypes import Array

TENSORRT = load_library("tensorrt-rtx")
FEW: Profile = {"B": (1, 1, 2), "S": (1, 1, 2), "A": (21, 84, 84), "C": (1, 5, 5), "M": (0, 3, 8)}
MANY: Profile = {**FEW, "B": (1, 8, 16), "S": (1, 1, 16)}


class Rig(NamedTuple):
    """An execution, and what it runs on."""

    execution: Execution
    context: Context
    memory: HostMemory
    session: Any

    def expected(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """What the ONNX file gives."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs), strict=True))


def described(contract: Contract, *profiles: Profile) -> EngineContract:
    """The contract of an engine that takes and gives what the model does."""
    return EngineContract(
        name=contract.name,
        file=f"{contract.name}.tensorrt-rtx.fp32.engine",
        sha256="",
        model_file=contract.file,
        model_sha256=contract.sha256,
        runtime="tensorrt-rtx",
        runtime_version=TENSORRT.__version__,
        compute_capabilities=(),
        precision="fp32",
        profiles=profiles,
        inputs=contract.inputs,
        outputs=contract.outputs,
        build_seconds=0.0,
    )


def rig(path: Path, contract: Contract, *profiles: Profile, capacity: int = 2**30) -> Rig:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    memory = HostMemory(capacity)
    engine = described(contract, *profiles)
    context = Context(session, engine, contract, memory)
    return Rig(Execution(TENSORRT, context, memory, engine.outputs), context, memory, session)


@pytest.fixture
def assigner(dense_dir: Path) -> Rig:
    return rig(dense_dir / "assigner.onnx", load_contract(dense_dir / "assigner.json"), FEW, MANY)


def test_results_are_those_of_the_model_and_only_the_named_are_fetched(assigner: Rig) -> None:
    inputs = graph_inputs()
    names = ["fg_mask", "target_labels", "target_weights"]
    results = assigner.execution.run(0, inputs, names)
    assert list(results) == names
    expected = assigner.expected(inputs)
    for name in names:
        assert results[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(results[name], expected[name])
    assert expected["fg_mask"].any()


def test_memory_grows_to_the_largest_and_stays(assigner: Rig) -> None:
    tensors = 12  # six inputs, six outputs
    large, small = graph_inputs(images=2), graph_inputs(images=1, slots=1, seed=1)
    assigner.execution.run(0, small, ["fg_mask"])
    assert assigner.memory.allocations == len(assigner.memory.blocks) == tensors
    assigner.execution.run(0, large, ["fg_mask"])
    # The points have no B: theirs is the only block that need not grow.
    assert assigner.memory.allocations == 2 * tensors - 1
    blocks = dict(assigner.memory.blocks)
    for inputs in (small, large, small):
        results = assigner.execution.run(0, inputs, ["target_scores"])
        np.testing.assert_array_equal(results["target_scores"], assigner.expected(inputs)["target_scores"])
    assert assigner.memory.allocations == 2 * tensors - 1
    assert assigner.memory.blocks == blocks


def test_profiles_are_switched_only_when_they_change(assigner: Rig) -> None:
    many, few = graph_inputs(images=9), graph_inputs(images=1)
    for profile, inputs in ((0, few), (1, many), (1, few), (1, many), (0, few)):
        results = assigner.execution.run(profile, inputs, ["target_gt_idx"])
        np.testing.assert_array_equal(results["target_gt_idx"], assigner.expected(inputs)["target_gt_idx"])
    assert assigner.context.switches == [1, 0]


def test_no_ground_truth_is_an_empty_tensor_with_an_address(assigner: Rig) -> None:
    inputs = graph_inputs(slots=0)
    results = assigner.execution.run(0, inputs, ["target_labels"])
    np.testing.assert_array_equal(results["target_labels"], assigner.expected(inputs)["target_labels"])


@pytest.fixture
def chosen(tmp_path: Path) -> Rig:
    """``kept`` holds those of ``x`` whose ``flag`` is set: only the values say how many."""
    graph = helper.make_graph(
        [helper.make_node("Compress", ["x", "flag"], ["kept"], axis=0)],
        "choose",
        [helper.make_tensor_value_info(n, k, ["N"]) for n, k in (("x", TensorProto.FLOAT), ("flag", TensorProto.BOOL))],
        [helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["K"])],
    )
    path = tmp_path / "choose.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    inputs = (TensorSpec("x", "float32", ("N",)), TensorSpec("flag", "bool", ("N",)))
    outputs = (TensorSpec("kept", "float32", ("K",)),)
    contract = Contract("choose", "loss", path.name, "", "dense", {}, inputs, outputs, {})
    return rig(path, contract, {"N": (0, 4, 1000)})


@pytest.mark.parametrize("kept", [[], [1], [0, 3], [0, 1, 2, 3]])
def test_sizes_that_only_the_values_decide(chosen: Rig, kept: list[int]) -> None:
    flags = np.isin(np.arange(4), kept)
    inputs = {"x": np.arange(4, dtype=np.float32), "flag": flags}
    assert chosen.execution.run(0, inputs, ["kept"])["kept"].tolist() == kept


def test_memory_that_is_not_there_is_named_and_the_next_call_runs(dense_dir: Path) -> None:
    """The allocator is called by TensorRT, through which no exception may pass."""
    contract = load_contract(dense_dir / "assigner.json")
    room = rig(dense_dir / "assigner.onnx", contract, MANY)
    room.execution.run(0, graph_inputs(images=2), ["fg_mask"])
    taken = sum(block.size for block in room.memory.blocks.values())

    tight = rig(dense_dir / "assigner.onnx", contract, MANY, capacity=taken)
    inputs = graph_inputs(images=2)
    tight.execution.run(0, inputs, ["fg_mask"])
    with pytest.raises(RuntimeError, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        tight.execution.run(0, graph_inputs(images=16), ["fg_mask"])
    tight.execution.close()
    assert tight.memory.blocks == {}
    results = tight.execution.run(0, inputs, ["fg_mask"])
    np.testing.assert_array_equal(results["fg_mask"], tight.expected(inputs)["fg_mask"])


def test_an_output_without_memory_is_named(dense_dir: Path) -> None:
    """The inputs fit, the first output does not: TensorRT itself gives no more than False."""
    contract = load_contract(dense_dir / "assigner.json")
    inputs = graph_inputs(images=2)
    tight = rig(dense_dir / "assigner.onnx", contract, MANY, capacity=sum(array.nbytes for array in inputs.values()))
    with pytest.raises(RuntimeError, match="execute_async_v3 of TensorRT failed: cudaMalloc failed"):
        tight.execution.run(0, inputs, ["fg_mask"])


def test_a_refused_call_is_named_and_leaves_nothing_queued(assigner: Rig) -> None:
    assigner.context.fails = "execute_async_v3"
    with pytest.raises(RuntimeError, match="execute_async_v3 of TensorRT failed: what TensorRT logged says why"):
        assigner.execution.run(0, graph_inputs(), ["fg_mask"])
    assert assigner.memory.queue == []
    with pytest.raises(RuntimeError, match="set_input_shape of TensorRT failed"):
        assigner.execution.run(0, graph_inputs(images=3), ["fg_mask"])
    assigner.context.fails = None
    assert assigner.execution.run(0, graph_inputs(), ["fg_mask"])["fg_mask"].any()


def test_a_buffer_is_never_at_address_zero() -> None:
    memory = HostMemory()
    buffer = Buffer(memory)
    assert buffer.reserve(0) > 0
    first = buffer.reserve(1)
    assert buffer.reserve(0) == first
    assert buffer.reserve(2) != first
    buffer.release()
    buffer.release()
    assert memory.blocks == {}

"""Engines: real ones up to where a GPU is needed, then on the simulated GPU of `fake_gpu`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from tests.exports import exported, made_once
from tests.serve.conftest import loss_inputs
from tests.serve.runners.fake_gpu import Context, HostMemory, Library
from yolo_assigner.export.contract import Contract, ContractError, load_contract
from yolo_assigner.export.to_tensorrt.build import build_engine
from yolo_assigner.export.to_tensorrt.contract import EngineContract, load_engine_contract
from yolo_assigner.export.to_tensorrt.library import load_library
from yolo_assigner.export.to_tensorrt.profiles import parse_profile
from yolo_assigner.serve.inference.runners import tensorrt as tensorrt_engine
from yolo_assigner.serve.inference.runners.base import Device, RunnerError, UnfitRequestError
from yolo_assigner.serve.inference.runners.cuda import CudaMemory, call
from yolo_assigner.serve.inference.runners.tensorrt import TensorRtRunner, narrowed
from yolo_assigner.serve.inference.runners.warm_up import warm_up

GPU = Device("cuda")
TENSORRT = load_library("tensorrt-rtx")
SIZES = ("B=1,2,4", "M=1,3,8", "imgsz=64,64,128")


def has_gpu() -> bool:
    try:
        CudaMemory(0).close()
    except RunnerError:
        return False
    return True


needs_none = pytest.mark.skipif(has_gpu(), reason="shows what happens without a GPU")


@pytest.fixture(scope="module")
def contract(dense_dir: Path) -> Contract:
    return load_contract(dense_dir / "loss.json")


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def built(request: pytest.FixtureRequest) -> tuple[Path, EngineContract]:
    """A real engine of the loss, built once per state of the sources and release of TensorRT."""

    def build(folder: Path) -> None:
        model = exported("loss", "dense") / "loss.onnx"
        profiles = [parse_profile(SIZES)]
        build_engine(model, folder, runtime="tensorrt-rtx", precision=request.param, profiles=profiles)

    folder = made_once("-".join(("engine", request.param, TENSORRT.__version__, *SIZES)), build)
    (path,) = folder.glob("*.engine")
    return path, load_engine_contract(path.with_name(f"{path.name}.json"))


@pytest.fixture
def pretend(dense_dir: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> Callable[..., HostMemory]:
    """Install a simulated GPU whose engines compute the ONNX file."""

    def put(engine: EngineContract) -> HostMemory:
        memory = HostMemory()
        session = onnxruntime.InferenceSession(dense_dir / "loss.onnx", providers=["CPUExecutionProvider"])
        library = Library(TENSORRT, Context(session, engine, contract, memory))
        monkeypatch.setattr(tensorrt_engine, "CudaMemory", lambda _: memory)
        monkeypatch.setattr(tensorrt_engine, "load_library", lambda _: library)
        return memory

    return put


@needs_none
def test_without_a_gpu_there_is_one_clear_error(built: tuple[Path, EngineContract], contract: Contract) -> None:
    runner = TensorRtRunner(*built, contract, GPU)
    with pytest.raises(RunnerError, match=r"^no GPU can be used \(cudaGetDeviceCount failed: cudaError\w+, .* driver"):
        warm_up(runner, contract)


@needs_none
def test_an_engine_that_tensorrt_refuses(
    built: tuple[Path, EngineContract], contract: Contract, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The real library refuses it for want of a driver; its own words are in the error and in the log."""
    memory = HostMemory()
    monkeypatch.setattr(tensorrt_engine, "CudaMemory", lambda _: memory)
    runner = TensorRtRunner(*built, contract, GPU)
    with pytest.raises(RunnerError) as caught:
        warm_up(runner, contract)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert errors[-1].name == "serve.tensorrt"
    assert errors[-1].getMessage() in str(caught.value)
    assert f"build it again with `{built[1].rebuild_command}`" in str(caught.value)
    assert memory.closed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_sha256": "f" * 64}, ["ffffffffffff", "loss.onnx"]),
        ({"sha256": "f" * 64}, ["its hash is", "ffffffffffff"]),
        ({"runtime_version": "1.0.0"}, ["1.0.0", TENSORRT.__version__]),
        ({"compute_capabilities": ("12.0",)}, ["12.0", "8.9"]),
    ],
)
def test_an_engine_of_something_else_is_refused_with_both_sides(
    built: tuple[Path, EngineContract],
    contract: Contract,
    pretend: Callable[..., HostMemory],
    change: dict[str, Any],
    words: list[str],
) -> None:
    path, engine = built
    memory = pretend(engine)
    runner = TensorRtRunner(path, dataclasses.replace(engine, **change), contract, GPU)
    with pytest.raises(ContractError, match=r"yolo-assigner export tensorrt loss\.onnx") as caught:
        warm_up(runner, contract)
    for word in words:
        assert word in str(caught.value)
    assert memory.blocks == {}


def test_results_keep_the_types_of_the_model(
    built: tuple[Path, EngineContract], contract: Contract, dense_dir: Path, pretend: Callable[..., HostMemory]
) -> None:
    """An engine in half precision takes rounded maps; what it is asked for and gives does not show it."""
    path, engine = built
    memory = pretend(engine)
    runner = TensorRtRunner(path, engine, contract, GPU)
    warm_up(runner, contract)
    inputs = loss_inputs()
    names = [spec.name for spec in contract.outputs]
    results = runner.infer(inputs, names)
    half = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[engine.precision]
    rounded = {name: array.astype(half) if name.startswith("feat") else array for name, array in inputs.items()}
    session = onnxruntime.InferenceSession(dense_dir / "loss.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(names, {name: array.astype(inputs[name].dtype) for name, array in rounded.items()})
    for spec, array in zip(contract.outputs, expected, strict=True):
        assert results[spec.name].dtype == spec.dtype
        np.testing.assert_array_equal(results[spec.name], array, err_msg=spec.name)
    assert results["fg_mask"].any()
    runner.close()
    assert memory.blocks == {}
    assert memory.closed


def test_sizes_outside_are_refused_before_anything_is_copied(
    built: tuple[Path, EngineContract], contract: Contract, pretend: Callable[..., HostMemory]
) -> None:
    path, engine = built
    memory = pretend(engine)
    runner = TensorRtRunner(path, engine, contract, GPU)
    warm_up(runner, contract)
    before = memory.allocations
    with pytest.raises(UnfitRequestError, match=r"axis M \(ground-truth slots\) is 0, .* takes 1 to 8; .* M=0,3,8"):
        runner.infer(loss_inputs(slots=0), ["loss"])
    with pytest.raises(UnfitRequestError, match=r"axis B \(images\) is 5, .* takes 1 to 4"):
        runner.infer(loss_inputs(images=5), ["loss"])
    assert memory.allocations == before
    assert runner.infer(loss_inputs(), ["loss"])["loss"] > 0


def test_numbers_beyond_half_precision_are_refused(built: tuple[Path, EngineContract]) -> None:
    """65520 would round to infinity in float16; bfloat16 reaches as far as float32. What is infinite already stays."""
    _, engine = built
    inputs = loss_inputs()
    inputs["feat_1"][0, 0, 0, :3] = [65519, np.inf, np.nan]
    given = narrowed(engine, inputs)["feat_1"][0, 0, 0, :3].tolist()
    assert given[0] == {"fp32": 65519, "fp16": 65504, "bf16": 65536}[engine.precision]
    assert given[1] == np.inf
    assert np.isnan(given[2])
    inputs["feat_1"][1, 2, 3, 1] = -65520
    if engine.precision != "fp16":
        assert narrowed(engine, inputs)["feat_1"][1, 2, 3, 1] == {"fp32": -65520, "bf16": -65536}[engine.precision]
        return
    with pytest.raises(UnfitRequestError, match=r"'feat_1' has numbers beyond the largest float16, .*--precision fp32"):
        narrowed(engine, inputs)


def test_inputs_are_contiguous_and_in_the_engines_types(built: tuple[Path, EngineContract]) -> None:
    _, engine = built
    inputs = {name: array[::-1] for name, array in loss_inputs().items()}
    for spec in engine.inputs:
        array = narrowed(engine, inputs)[spec.name]
        assert array.dtype == spec.dtype
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, inputs[spec.name].astype(spec.dtype))


@needs_none
@pytest.mark.parametrize(("name", "arguments"), [("cudaMalloc", [16]), ("cudaFree", [0]), ("cudaSetDevice", [0])])
def test_every_failure_of_cuda_names_the_call(name: str, arguments: list[int]) -> None:
    with pytest.raises(RuntimeError, match=f"^{name} failed: cudaError[A-Z][A-Za-z]+, .*CUDA"):
        call(name, *arguments)

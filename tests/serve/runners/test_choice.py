"""Which runner a model gets, and the reasons logged for the others."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.serve.conftest import graph_inputs
from tests.serve.runners.test_tensorrt_engine import needs_none
from yolo_assigner.export.contract import SPARSE_KINDS, Contract, ContractError, load_contract
from yolo_assigner.export.to_tensorrt.build import build_engine
from yolo_assigner.export.to_tensorrt.contract import load_engine_contract
from yolo_assigner.export.to_tensorrt.profiles import parse_profile
from yolo_assigner.serve.inference.loading import open_artifacts
from yolo_assigner.serve.inference.runners.base import HOST, Device, RunnerError, parse_device
from yolo_assigner.serve.inference.runners.choice import Candidate, FallbackRunner, RunnerOptions, choose
from yolo_assigner.serve.inference.runners.warm_up import tiny_inputs
from yolo_assigner.serve.wire.dtypes import Array

CUDA = Device("cuda")
RTX = "assigner.tensorrt-rtx.fp32.engine"


@pytest.fixture(scope="module")
def with_engine(dense_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, and a real engine of one of them in the folder ``engines``."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(dense_dir, folder, dirs_exist_ok=True)
    sizes = parse_profile(["B=1,2,4", "M=1,3,8", "imgsz=64,64,128", "C=1,5,8"])
    build_engine(folder / "assigner.onnx", folder / "engines", runtime="tensorrt-rtx", profiles=[sizes])
    return folder


def choice(folder: Path, engine: str = "auto", device: Device | None = None, name: str = "assigner") -> FallbackRunner:
    return choose(folder / f"{name}.onnx", load_contract(folder / f"{name}.json"), RunnerOptions(engine, device, 1))


def names(chosen: FallbackRunner) -> list[str]:
    return [candidate.name for candidate in chosen.candidates]


def test_the_order_is_from_the_fastest_to_the_one_that_always_runs(with_engine: Path) -> None:
    assert names(choice(with_engine)) == ["tensorrt", RTX, "onnxruntime on cuda:0", "onnxruntime on cpu"]
    assert names(choice(with_engine, device=Device("cuda", 1))) == ["tensorrt", RTX, "onnxruntime on cuda:1"]
    assert names(choice(with_engine, device=HOST)) == ["onnxruntime on cpu"]
    assert names(choice(with_engine, "tensorrt-rtx")) == [RTX]
    assert names(choice(with_engine, "torch")) == ["torch on cuda:0", "torch on cpu"]
    assert names(choice(with_engine, "onnxruntime-tensorrt")) == ["onnxruntime-tensorrt on cuda:0"]


@needs_none
def test_better_runners_that_do_not_load_are_logged_with_their_reasons(
    with_engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = choice(with_engine)
    assert chosen.platform == ""
    with caplog.at_level(logging.INFO, "serve"):
        chosen.load()
    lines = [record.getMessage() for record in caplog.records if record.name == "serve"]
    assert [line.partition(":")[0] for line in lines] == ["model assigner"] * 4
    assert "tensorrt is not taken: no engine of model 'assigner' for tensorrt in" in lines[0]
    assert "build one with `yolo-assigner export tensorrt" in lines[0]
    assert f"{RTX} is not taken: no GPU can be used" in lines[1]
    assert "onnxruntime on cuda:0 is not taken: this onnxruntime has no CUDAExecutionProvider" in lines[2]
    assert lines[3].endswith("CPUExecutionProvider, cpu is taken")
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    assert chosen.platform == "onnxruntime_onnx"
    assert chosen.infer(graph_inputs(), ["fg_mask"])["fg_mask"].any()


def test_a_requested_engine_is_not_replaced(with_engine: Path, artifacts_dir: Path) -> None:
    with pytest.raises(ContractError, match=r"no engine of model 'assigner' for tensorrt in .*--runtime tensorrt`"):
        choice(with_engine, "tensorrt")
    with pytest.raises(ContractError, match="no engine of model 'loss' for tensorrt-rtx"):
        choice(with_engine, "tensorrt-rtx", name="loss")
    with pytest.raises(ContractError, match="export the model with --for tensorrt, then build one with"):
        choice(artifacts_dir, "tensorrt")
    with pytest.raises(ValueError, match="engine tensorrt-rtx does not run on device cpu; choose --device cuda"):
        choice(with_engine, "tensorrt-rtx", HOST)


@pytest.mark.parametrize("kind", SPARSE_KINDS)
def test_no_engine_is_advised_where_none_can_be_built(kind: str, tmp_path: Path, artifacts_dir: Path) -> None:
    contract = dataclasses.replace(load_contract(artifacts_dir / "assigner.json"), kind=kind)
    for engine in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(ContractError, match=rf"^models of kind {kind} .* TensorRT has no lists; ONNX Runtime"):
            choose(tmp_path / "model.onnx", contract, RunnerOptions(engine, CUDA))
    for candidate in choose(tmp_path / "model.onnx", contract, RunnerOptions()).candidates[:2]:
        with pytest.raises(ContractError, match="TensorRT has no lists"):
            candidate.make()


@needs_none
@pytest.mark.parametrize(
    ("engine", "device", "reason"),
    [
        ("tensorrt-rtx", None, "no GPU can be used"),
        ("onnxruntime", CUDA, "this onnxruntime has no CUDAExecutionProvider"),
        ("onnxruntime-tensorrt", None, "this onnxruntime has no TensorrtExecutionProvider"),
        ("torch", CUDA, "sees 0 GPUs"),
    ],
)
def test_a_requested_engine_is_not_replaced_when_it_fails_to_load(
    with_engine: Path, engine: str, device: Device | None, reason: str
) -> None:
    with pytest.raises(RunnerError, match=f"^(torch .*)?{reason}"):
        choice(with_engine, engine, device).load()


@needs_none
def test_a_requested_gpu_is_not_replaced_by_the_cpu(with_engine: Path) -> None:
    with pytest.raises(RunnerError) as caught:
        choice(with_engine, device=CUDA).load()
    for reason in (
        "nothing runs model 'assigner': tensorrt: no engine",
        f"{RTX}: no GPU",
        "onnxruntime on cuda:0: this",
    ):
        assert reason in str(caught.value)


def test_the_device_alone_is_chosen_when_the_engine_is_named(with_engine: Path) -> None:
    chosen = choice(with_engine, "torch")
    chosen.load()
    assert chosen.platform == "pytorch"
    chosen.close()


def test_of_several_engines_the_one_as_precise_as_the_model_comes_first(with_engine: Path, tmp_path: Path) -> None:
    """Half precision is used when there is nothing else, never in place of the model's own precision."""
    shutil.copytree(with_engine, tmp_path, dirs_exist_ok=True)
    engine = load_engine_contract(tmp_path / "engines" / f"{RTX}.json")
    for precision, folder in (("fp16", tmp_path), ("bf16", tmp_path / "engines")):
        file = RTX.replace("fp32", precision)
        dataclasses.replace(engine, precision=precision, file=file).save(folder / f"{file}.json")
    found = names(choice(tmp_path, "tensorrt-rtx"))
    assert found == [RTX, RTX.replace("fp32", "fp16"), RTX.replace("fp32", "bf16")]


def test_a_device_that_suits_no_runtime_is_refused_before_any_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose --device cuda"):
        open_artifacts(tmp_path / "nothing", RunnerOptions("tensorrt-rtx", HOST))


def test_models_without_the_engine_that_was_asked_for_are_left_out(with_engine: Path) -> None:
    registry = open_artifacts(with_engine, RunnerOptions("tensorrt-rtx", CUDA))
    assert list(registry.models) == ["assigner"]
    assert list(registry.failures) == ["loss", "loss_grad"]
    assert registry.failures["loss"].startswith("no engine of model 'loss' for tensorrt-rtx")


def test_an_engine_contract_that_cannot_be_read_is_a_reason_too(
    with_engine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(with_engine, tmp_path, dirs_exist_ok=True)
    (tmp_path / "engines" / f"{RTX}.json").write_text("{")
    with pytest.raises(ContractError, match="cannot be read as a contract"):
        choice(tmp_path, "tensorrt-rtx")
    with caplog.at_level(logging.INFO, "serve"):
        choice(tmp_path).load()
    assert "tensorrt-rtx is not taken:" in caplog.text
    assert "cannot be read as a contract" in caplog.text


class Failing:
    """Loads, and fails in its first call."""

    platform = "failing"
    description = "fails"
    sizes: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.closed = False

    def load(self) -> None:
        """Do nothing."""

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Fail."""
        raise RuntimeError(f"no kernel for {len(inputs)} inputs and {len(outputs)} outputs")

    def close(self) -> None:
        """Fail too, which must not hide the first reason."""
        self.closed = True
        raise RuntimeError("closing failed")


def test_a_runner_that_fails_in_the_warm_up_is_not_chosen(
    artifacts_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contract = load_contract(artifacts_dir / "assigner.json")
    failing = Failing()
    last = choice(artifacts_dir, device=HOST).candidates[0]
    chosen = FallbackRunner(contract, [Candidate("failing", lambda: failing), last])
    with caplog.at_level(logging.INFO, "serve"):
        chosen.load()
    assert "failing is not taken: no kernel for 6 inputs and 5 outputs" in caplog.text
    assert failing.closed
    assert chosen.platform == "onnxruntime_onnx"


@needs_none
def test_each_model_of_a_folder_gets_its_own(with_engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = open_artifacts(with_engine, RunnerOptions(threads=1))
    with caplog.at_level(logging.INFO, "serve"):
        asyncio.run(registry.load())
    assert registry.ready
    assert f"model assigner: {RTX} is not taken: no GPU" in caplog.text
    assert "model loss: tensorrt-rtx is not taken: no engine of model 'loss'" in caplog.text
    assert {model.platform for model in registry.models.values()} == {"onnxruntime_onnx"}
    registry.close()


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "", "cuda:0 "])
def test_unknown_devices_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write cpu, cuda or cuda:N"):
        parse_device(text)


def test_devices() -> None:
    assert [str(parse_device(text)) for text in ("cpu", "cuda", "cuda:3")] == ["cpu", "cuda:0", "cuda:3"]


def test_tiny_inputs_have_the_sizes_that_a_runner_wants(artifacts_dir: Path) -> None:
    contract: Contract = load_contract(artifacts_dir / "loss_grad.json")
    shapes = {name: array.shape for name, array in tiny_inputs(contract, {"B": 3, "M": 0, "H0": 16}).items()}
    assert shapes["feat_0"] == (3, 67, 16, 4)
    assert shapes["feat_2"] == (3, 67, 1, 1)
    assert shapes["gt_labels"] == (3, 0, 1)
    assert all(not np.any(array) for array in tiny_inputs(contract).values())

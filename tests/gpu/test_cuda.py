"""What only a GPU can show."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common.inputs import Setting, input_sets, make_inputs
from benchmarks.contenders import criterion_of
from benchmarks.gpu.contenders import make as ours
from benchmarks.gpu.measure import PEAK, memory
from tests.gpu.conftest import needs_gpu
from yolo_assigner.export.contract import ContractError, load_contract
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_assigner.export.to_tensorrt.build import BuildError
from yolo_assigner.export.to_tensorrt.contract import RUNTIMES
from yolo_assigner.export.to_tensorrt.profiles import parse_profile
from yolo_assigner.serve.inference.runners.base import HOST, Device, Runner, RunnerError
from yolo_assigner.serve.inference.runners.onnx_runtime import OnnxRuntimeRunner
from yolo_assigner.serve.inference.runners.warm_up import tiny_inputs
from yolo_loss import DetectionLoss, TaskAlignedAssigner
from yolo_loss.triton.launch import available

pytestmark = needs_gpu
GPU = torch.device("cuda")
USUAL = Setting("loss+grad", 4, 30, classes=3)


@pytest.fixture(autouse=True)
def own_stream() -> Iterator[None]:
    """Graphs are not captured in the default one."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
        torch.cuda.synchronize()


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU is an error, as in ``with warnings.catch_warnings``."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("implementation", ["auto", "dense", "triton"])
@pytest.mark.parametrize("place", ["cuda", "cpu"])
@pytest.mark.usefixtures("no_waiting")
def test_a_training_step_does_not_wait(implementation: str, place: str) -> None:
    if implementation == "triton" and not available():
        pytest.skip("triton is not installed")
    inputs = make_inputs(USUAL, "fp32")
    batch = {name: values.to(place) for name, values in inputs.batch.items()}
    leaves = [level.cuda().requires_grad_() for level in inputs.predictions]
    criterion = criterion_of(USUAL, implementation=implementation, max_boxes=USUAL.slots)
    if implementation == "triton":
        torch.autograd.grad(criterion(leaves, batch)[0], leaves)  # loading a compiled kernel may wait
    torch.cuda.set_sync_debug_mode("error")
    loss, _ = criterion(leaves, batch)
    torch.autograd.grad(loss, leaves)


@pytest.mark.usefixtures("no_waiting")
def test_counting_the_boxes_of_a_batch_on_the_gpu_waits_once() -> None:
    (inputs,) = input_sets(USUAL, "fp32", GPU, 1)
    leaves = [level.requires_grad_() for level in inputs.predictions]
    criterion = DetectionLoss(USUAL.classes, preset="ultralytics-8.4", topk=10)
    criterion(leaves, inputs.batch)  # loading on first use may wait
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.autograd.grad(criterion(leaves, inputs.batch)[0], leaves)
    assert sum("synchronizing" in str(warning.message) for warning in seen) == 1


@pytest.mark.usefixtures("no_waiting")
def test_the_sparse_formulation_waits() -> None:
    setting = USUAL._replace(task="assigner")
    run = ours(setting, "sparse", input_sets(setting, "fp32", GPU, 1))
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        run(0)


@pytest.mark.parametrize("task", ["assigner", "loss+grad"])
@pytest.mark.parametrize("name", ["auto graph", "dense graph", "triton graph"])
def test_a_graph_computes_what_lies_in_its_inputs(task: str, name: str) -> None:
    """Other numbers in the same memory: the graph is not a recording of its first results."""
    if name.startswith("triton") and not available():
        pytest.skip("triton is not installed")
    setting = USUAL._replace(task=task)
    first, second = input_sets(setting, "fp32", GPU, 2)
    replay = ours(setting, name, [first])
    want = ours(setting, name.split(maxsplit=1)[0], [second])(0)
    for ours_, theirs in ((first.predictions, second.predictions), (first.truth, second.truth)):
        for target, source in zip(ours_, theirs, strict=True):
            target.copy_(source)
    for key, values in second.batch.items():
        first.batch[key].copy_(values)
    for got, wanted in zip(replay(0), want, strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_tensor_float_32_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ours(USUAL, "auto", input_sets(USUAL, "fp32", GPU, 1))
    want = run(0)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    for got, wanted in zip(run(0), want, strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_memory_of_many_boxes() -> None:
    """As much as one portion takes, and what is returned; all pairs at once would take 20 times as much."""
    setting = Setting("assigner", 16, 300)
    assert memory(ours(setting, "auto", input_sets(setting, "fp32", GPU, 1)), GPU)[PEAK] < 300


TOO_MANY = """
import torch
from yolo_loss import DetectionLoss
batch = {"batch_idx": torch.zeros(3), "cls": torch.zeros(3), "bboxes": torch.full((3, 4), 0.5)}
feats = [torch.zeros(1, 67, 8 >> level, 8 >> level, device="cuda") for level in range(3)]
DetectionLoss(3, max_boxes=2)(feats, {name: values.cuda() for name, values in batch.items()})
torch.cuda.synchronize()
"""


def test_more_boxes_than_slots_stop_the_kernels() -> None:
    # In a process of its own, which is of no use afterwards.
    done = subprocess.run([sys.executable, "-c", TOO_MANY], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "max_boxes" in done.stderr, done.stderr[-2000:]


def check_runner(runner: Runner, path: Path) -> None:
    """Beside ONNX Runtime on the CPU."""
    contract = load_contract(path.with_suffix(".json"))
    host = OnnxRuntimeRunner(path, contract.default_outputs, HOST)
    host.load()
    inputs = tiny_inputs(contract, {"B": 2, "M": 4})
    inputs = {
        name: np.random.default_rng(0).standard_normal(values.shape).astype(values.dtype) if "feat" in name else values
        for name, values in inputs.items()
    }
    names = [spec.name for spec in contract.outputs]
    want = host.infer(inputs, names)
    for name, values in runner.infer(inputs, names).items():
        np.testing.assert_allclose(values, want[name], rtol=1e-4, atol=1e-5)
    runner.close()


@pytest.mark.parametrize("kind", ["loss", "loss_grad"])
def test_onnx_runtime_of_the_server(artifacts_dir: Path, kind: str) -> None:
    path = artifacts_dir / f"{kind}.onnx"
    runner = OnnxRuntimeRunner(path, load_contract(path.with_suffix(".json")).default_outputs, Device("cuda"))
    try:
        runner.load()
    except RunnerError as error:
        pytest.skip(str(error))
    check_runner(runner, path)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", ["loss", "loss_grad"])
def test_engines_of_the_server(dense_dir: Path, tmp_path: Path, runtime: str, kind: str) -> None:
    from yolo_assigner.export.to_tensorrt.build import build_engine
    from yolo_assigner.serve.inference.runners.tensorrt import TensorRtRunner

    path = dense_dir / f"{kind}.onnx"
    profile = parse_profile(["B=1,2,4", "M=0,4,8", "imgsz=32,64,64"])
    try:
        file, engine = build_engine(path, tmp_path, runtime=runtime, profiles=[profile])
        runner = TensorRtRunner(file, engine, load_contract(path.with_suffix(".json")), Device("cuda"))
        runner.load()
    except (RunnerError, ContractError, BuildError, ValueError) as error:
        pytest.skip(str(error))
    check_runner(runner, path)


@pytest.mark.parametrize("implementation", ["auto", "sparse", "dense", "triton"])
def test_the_tensors_device_is_used_and_not_the_current_one(implementation: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    if implementation == "triton" and not available():
        pytest.skip("triton is not installed")
    inputs = sample_assigner_inputs(Case(2, 20, pyramid(320, 320, (8, 16, 32)), 3), (8, 16, 32), seed=0)
    assigner = TaskAlignedAssigner(10, 3, 0.5, 6.0, implementation=implementation)
    want = assigner(*inputs)
    with torch.cuda.device(0):
        got = assigner(*(tensor.to("cuda:1") for tensor in inputs))
    assert all(field.device.index == 1 for field in got)
    assert torch.equal(got.target_gt_idx.cpu(), want.target_gt_idx)

"""``python -m benchmarks.gpu`` on a CPU with small sizes."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from benchmarks.contenders import Setting
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.clock import QUICK, MissingError, measure
from benchmarks.gpu.contenders import ours
from benchmarks.gpu.correctness import compare, oracle_checks
from benchmarks.gpu.inputs import input_sets, make_inputs
from benchmarks.gpu.models import find_engine, find_model
from benchmarks.gpu.runtimes import bound, feed, load_engine, onnx_runtime
from yolo_assigner.export.contract import ContractError
from yolo_assigner.export.to_tensorrt.contract import EngineContract

Array = np.ndarray[Any, Any]
HOST = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("preset_of_the_fixtures", "one_thread")


@pytest.fixture
def preset_of_the_fixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the preset of the tests' exported models in place of the benchmark's."""
    monkeypatch.setattr("benchmarks.contenders.PRESET", "yolov8")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: small operations on several threads take as long as the slowest thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SMALL = Setting("loss+grad", 3, 4, image=64, classes=3)


def test_all_parts(artifacts_dir: Path, dense_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--quick", "--alone", "--out", str(out), "--models", str(artifacts_dir), str(dense_dir)]
    assert main(words) == 0
    parts = json.loads(out.read_text())["parts"]
    assert all(part["state"] == "done" for part in parts.values())
    checks = [check for name, part in parts.items() if name.startswith("correct ") for check in part["result"]]
    compared = {check["what"].split(":")[0] for check in checks if "figure" in check}
    assert {"loss+grad fp32, onnxruntime sparse", "assigner fp16, auto", "sample, sparse, batch on the CPU"} <= compared
    entries = parts["times loss+grad 2 x 3 fp32"]["result"]["contenders"]
    assert all(entries[name]["ms"] > 0 for name in ("auto", "dense", "sparse", "onnxruntime dense"))
    assert entries["auto graph"]["reason"] == "CUDA graphs need a GPU"
    assert "## Goals" in out.with_suffix(".md").read_text()
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.count("there already") == len(parts)


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"loss": torch.tensor(2.0), "gradient": torch.tensor([3.0, 4.0])}
    for got in ({"gradient": torch.tensor([3.0, 4.1])}, {"loss": torch.tensor(2.1)}, {"loss": torch.tensor(torch.nan)}):
        assert [check["ok"] for check in compare("it", {**wanted, **got}, wanted)].count(False) == 1
    right = oracle_checks(HOST)
    assert all(check["ok"] for check in right)
    monkeypatch.setattr("yolo_loss.assignment.dense.ciou_of_geometry", lambda one, other: one.x1 - other.x1)
    assert not all(check["ok"] for check in oracle_checks(HOST))


def test_sets_take_turns() -> None:
    seen: list[int] = []
    figures = measure(seen.append, 3, HOST, QUICK._replace(fewest=5, most=5))
    assert (seen, figures["calls"]) == ([0, 1, 2, 0, 0, 1, 2, 0, 1], 5)
    assert figures["least_ms"] <= figures["ms"] <= figures["ninth_decile_ms"]


def test_sets_are_the_same_images_in_another_order() -> None:
    sets = input_sets(SMALL, "fp32", HOST, 2)
    run = ours(SMALL, "auto", sets)
    first, second = run(0), run(1)
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    torch.testing.assert_close(first[0], second[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(first[1].roll(1, 0), second[1], rtol=1e-5, atol=1e-7)
    images = sets[1].batch["batch_idx"]
    assert torch.equal(images, images.sort().values)
    addresses = {inputs.predictions[0].data_ptr() for inputs in sets}
    assert len(addresses) == len(sets)


def test_only_scores_and_maps_are_halved() -> None:
    maps = make_inputs(SMALL, "fp16").predictions
    assert {level.dtype for level in maps} == {torch.float16}
    scores, boxes, points = make_inputs(SMALL._replace(task="assigner"), "fp16").predictions
    assert (scores.dtype, boxes.dtype, points.dtype) == (torch.float16, torch.float32, torch.float32)


def test_a_run_without_a_contender_and_one_that_makes_up_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.parts.Plan.settings", [SMALL._replace(batch=2)])
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--quick", "--alone", "--out", str(out)]
    assert main([*words, "--without", "sparse"]) == 0
    name = "times loss+grad 2 x 4 fp16"
    first = json.loads(out.read_text())["parts"][name]["result"]["contenders"]
    assert first["sparse"] == {"reason": "left out by --without"}
    assert "sparse: left out by --without" in capsys.readouterr().out
    assert main(words) == 0
    entries = json.loads(out.read_text())["parts"][name]["result"]["contenders"]
    assert entries["sparse"]["ms"] > 0
    assert entries["auto"] == first["auto"]  # not measured again


def test_what_the_oracle_breaks_on_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of registers\nand more")

    monkeypatch.setattr("yolo_loss.assignment.dense.ciou_of_geometry", broken)
    checks = oracle_checks(HOST)
    assert {"what": "oracle, 2 x 5, dense", "reason": "RuntimeError: out of registers", "ok": False} in checks
    assert any(check["ok"] for check in checks if "sparse" in check["what"])


def test_few_positives_may_differ_in_one_choice() -> None:
    mask = torch.arange(100) < 50
    wanted = {"fg_mask": mask, "target_labels": mask.long(), "target_scores": torch.zeros(100, 1)}
    moved = {**wanted, "fg_mask": mask.roll(1), "target_labels": mask.roll(1).long()}  # two anchors differ
    assert all(check["ok"] for check in compare("it", moved, wanted))
    moved = {**wanted, "fg_mask": mask.roll(2), "target_labels": mask.roll(2).long()}
    assert [check["ok"] for check in compare("it", moved, wanted)] == [False, True]


class Logger:
    """Stands for TensorRT's logger."""

    ERROR = 1

    def __init__(self, level: int) -> None:
        self.level = level


def test_an_engine_that_does_not_load_is_missing_and_not_wrong(tmp_path: Path) -> None:
    """The library is replaced, because TensorRT can only be imported where a GPU's driver is installed."""
    file = tmp_path / "loss.engine"
    file.write_bytes(b"for another GPU")
    reader = SimpleNamespace(deserialize_cuda_engine=lambda _data: None)  # it prints why
    library = SimpleNamespace(__version__="1.2", Logger=Logger, Runtime=lambda _log: reader)
    with pytest.raises(MissingError, match=r"tensorrt-rtx 1\.2 refuses loss\.engine on this GPU"):
        load_engine(library, "tensorrt-rtx", file)

    def unsupported(_log: object) -> None:
        raise RuntimeError("compute capability 9.0\nand more")

    library.Runtime = unsupported
    with pytest.raises(MissingError, match=r"does not load loss\.engine: compute capability 9\.0$"):
        load_engine(library, "tensorrt-rtx", file)


def test_engines_are_not_built_while_it_measures(dense_dir: Path) -> None:
    path, contract = find_model([dense_dir], "loss_grad", "dense", "fp32", 3)
    with pytest.raises(ContractError, match=r"no engine of tensorrt-rtx for loss_grad\.onnx .* --prepare DIR"):
        find_engine(path, contract, "tensorrt-rtx")


NEEDED_NOT = ("onnx", "onnxruntime", "onnxscript", "onnx_ir", "ml_dtypes", "safetensors", "tqdm", "PIL", "ultralytics")
BARE = f"""
import sys
sys.modules.update(dict.fromkeys({NEEDED_NOT}))  # None makes an import fail
import torch
from benchmarks.contenders import Setting
from benchmarks.gpu import __main__
from benchmarks.gpu.correctness import contender_checks, sample_checks
device = torch.device("cpu")
sample_checks(device)
for check in contender_checks(Setting("loss", 1, 2, 32, 3), "fp32", device, (), compiling=False):
    print(check["what"], check.get("reason", "compared"))
"""


def test_torch_and_numpy_are_enough_for_ours() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "loss fp32, auto: loss, relative compared" in done.stdout


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"no model of 80 classes with preset yolov8 in .* --prepare DIR"):
        find_model([tmp_path], "loss", "dense", "fp32", 80)


class ContextOnHost:
    """TensorRT's execution context on the CPU: ONNX Runtime reads and writes at the addresses that it is given."""

    def __init__(self, path: Path, engine: EngineContract) -> None:
        self.active_optimization_profile = 0
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._types = {spec.name: np.dtype(spec.dtype) for spec in (*engine.inputs, *engine.outputs)}
        self._outputs = [spec.name for spec in engine.outputs]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Keep the shape of an input."""
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Keep the address of an input or output."""
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an output, which follows from the inputs' shapes as in TensorRT."""
        shape: tuple[int, ...] = self._results()[name].shape
        return shape

    def execute_async_v3(self, _stream: int) -> bool:
        """Read the inputs, compute, write the outputs."""
        for name, values in self._results().items():
            self._at(name, values.shape)[...] = values
        return True

    def _results(self) -> dict[str, Array]:
        inputs = {spec.name: self._at(spec.name, self._shapes[spec.name]) for spec in self._session.get_inputs()}
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def _at(self, name: str, shape: tuple[int, ...]) -> Array:
        size = int(np.prod(shape)) * self._types[name].itemsize
        memory = memoryview((ctypes.c_byte * size).from_address(self._addresses[name]))
        return np.frombuffer(memory, self._types[name]).reshape(shape)


def test_an_engine_is_given_the_addresses_of_its_tensors(dense_dir: Path) -> None:
    """Bind tensors to a context that reads and writes at their addresses; TensorRT's own context needs a GPU."""
    path, contract = find_model([dense_dir], "loss_grad", "dense", "fp32", 3)
    sets = input_sets(SMALL, "fp32", HOST, 2)
    profile = {axis: (1, 4, 64) for spec in contract.inputs for axis in spec.axes if isinstance(axis, str)}
    engine = EngineContract(
        contract.name, "e", "", contract.file, contract.sha256, "tensorrt", "0", (), "fp32", (profile,),
        contract.inputs, contract.outputs, 0.0,
    )  # fmt: skip
    feeds = [feed(contract, inputs) for inputs in sets]
    run = bound(ContextOnHost(path, engine), engine, feeds)
    session = onnx_runtime(SMALL, "fp32", "dense", sets, [dense_dir])
    for number in (0, 1):
        got: Mapping[str, Tensor] = run(number)  # type: ignore[assignment]
        want: Mapping[str, Any] = session(number)  # type: ignore[assignment]
        for name, values in want.items():
            np.testing.assert_allclose(got[name].numpy(), values.numpy(), rtol=1e-5, atol=1e-7)
    wrong = replace(engine, profiles=({**profile, "M": (9, 9, 9)},))
    with pytest.raises(ValueError, match="axis M"):
        bound(ContextOnHost(path, wrong), wrong, feeds)(0)

"""``python -m benchmarks.gpu`` on a CPU with small sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.common.inputs import Setting, input_sets, make_inputs
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.contenders import find_model
from benchmarks.gpu.contenders import make as ours
from benchmarks.gpu.correctness import Case, checks, compare
from benchmarks.gpu.measure import FEWEST, measure
from benchmarks.gpu.units import Plan, units
from yolo_assigner.export.contract import ContractError

HOST = torch.device("cpu")
SMALL = Setting("loss+grad", 3, 4, image=64, classes=3)
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


def test_all_units(artifacts_dir: Path, dense_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    (tmp_path / "sparse").symlink_to(artifacts_dir)
    (tmp_path / "dense").symlink_to(dense_dir)
    words = ["--device", "cpu", "--quick", "--out", str(out), "--models", str(tmp_path)]
    only = ["compare assigner", "compare loss+grad", "time assigner", "time loss 2 x 4 fp16", "service, sparse"]
    assert main([*words, "--worker", "--only", *only]) == 0
    (run,) = json.loads(out.read_text())["runs"]
    first = run["entries"]
    assert first["time assigner 2 x 4 fp32, auto"]["ms"] > 0
    for name in ("compare assigner fp16, auto", "compare loss+grad fp32, onnxruntime dense", "service, sparse"):
        assert first[name]["checks"]
    assert first["compare assigner fp32, auto graph"]["reason"] == "CUDA graphs need a GPU"
    assert main([*words, "--worker", "--only", "time loss 2"]) == 0
    (run,) = json.loads(out.read_text())["runs"]
    again = {name: entry for name, entry in run["entries"].items() if "ms" in entry}
    assert again["time loss 2 x 4 fp32, sparse"]["ms"] > 0
    assert all(again[name] == entry for name, entry in first.items() if "ms" in entry)  # not measured again
    # The report of what is there, as the time for more is over.
    capsys.readouterr()
    assert main([*words, "--only", *only, "--minutes", "0"]) == 1
    text = out.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert "| loss | fp16 | 2 x 4 | auto |" in text


def test_figures_of_the_goals_come_before_what_compiles() -> None:
    names = [unit.name for unit in units(Plan(HOST, False, Path()))]
    assert len(names) == len(set(names))
    place = names.index
    assert place("compare loss+grad fp32, auto") < place("time loss+grad 16 x 30 fp32, reference")
    assert place("time loss+grad 16 x 300 fp32, auto") < place("compare ties, auto") < place("service, sparse")
    assert place("service, dense") < min(number for number, name in enumerate(names) if "compiled" in name)


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"loss": torch.tensor(2.0), "gradient": torch.tensor([3.0, 4.0])}
    for got in ({"gradient": torch.tensor([3.0, 4.1])}, {"loss": torch.tensor(2.1)}, {"loss": torch.tensor(torch.nan)}):
        assert [check["ok"] for check in compare({**wanted, **got}, wanted)].count(False) == 1
    case = Case(SMALL._replace(task="assigner", slots=12))
    assert all(check["ok"] for check in checks(case, "dense", HOST)["checks"])
    monkeypatch.setattr("yolo_loss.assignment.dense.ciou_of_geometry", lambda one, other: one.x1 - other.x1)
    assert not all(check["ok"] for check in checks(case, "dense", HOST)["checks"])


def test_few_positives_may_differ_in_one_choice() -> None:
    mask = torch.arange(100) < 50
    wanted = {"fg_mask": mask, "target_labels": mask.long(), "target_scores": torch.zeros(100, 1)}
    moved = {**wanted, "fg_mask": mask.roll(1), "target_labels": mask.roll(1).long()}  # two anchors differ
    assert all(check["ok"] for check in compare(moved, wanted))
    moved = {**wanted, "fg_mask": mask.roll(2), "target_labels": mask.roll(2).long()}
    assert [check["ok"] for check in compare(moved, wanted)] == [False, True]


def test_sets_take_turns() -> None:
    seen: list[int] = []
    figures = measure(seen.append, 2, HOST, 0)
    assert (seen, figures["calls"]) == ([0, 1, 0, 1, 0], 3)
    assert figures["least, ms"] <= figures["ms"] <= figures["ninth decile, ms"]


def test_the_warm_up_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], list[int]()

    def call(number: int) -> None:
        calls.append(number)
        now[0] += 0.01

    monkeypatch.setattr("benchmarks.gpu.measure.time.perf_counter", lambda: now[0])
    counted = measure(call, 2, HOST, 0.25)["calls"]
    assert FEWEST < counted <= 25
    assert 50 <= len(calls) - counted <= 51


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
    assert sets[0].predictions[0].data_ptr() != sets[1].predictions[0].data_ptr()


def test_only_scores_and_maps_are_halved() -> None:
    assert {level.dtype for level in make_inputs(SMALL, "fp16").predictions} == {torch.float16}
    scores, boxes, points = make_inputs(SMALL._replace(task="assigner"), "fp16").predictions
    assert (scores.dtype, boxes.dtype, points.dtype) == (torch.float16, torch.float32, torch.float32)


NEEDED_NOT = ("onnx", "onnxruntime", "onnxscript", "onnx_ir", "ml_dtypes", "safetensors", "tqdm", "PIL", "ultralytics")
BARE = f"""
import sys
sys.modules.update(dict.fromkeys({NEEDED_NOT}))  # None makes an import fail
import torch
from benchmarks.common.inputs import Setting, input_sets, make_inputs
from benchmarks.gpu import __main__
from benchmarks.gpu.correctness import Case, checks
print([check["ok"] for check in checks(Case(Setting("loss", 1, 2, 32, 3)), "auto", torch.device("cpu"))["checks"]])
"""


def test_torch_and_numpy_are_enough_for_ours() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[True]\n"


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"no .*dense.loss.json; .* makes it"):
        find_model(tmp_path, SMALL._replace(task="loss"), "dense")


def test_models_of_other_classes(artifacts_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "sparse").symlink_to(artifacts_dir)
    assert find_model(tmp_path, SMALL, "sparse")[0].name == "loss_grad.onnx"
    assert find_model(tmp_path, Setting("assigner", 1, 1), "sparse")[0].name == "assigner.onnx"
    with pytest.raises(ContractError, match="has 3 classes, not 80"):
        find_model(tmp_path, SMALL._replace(classes=80), "sparse")


def test_tests_of_a_gpu_and_beside_the_reference_need_pytest_alone() -> None:
    """Not the other packages for tests, which are not there."""
    words = "-o addopts= -p no:cacheprovider -W default -q --collect-only tests/gpu tests/integrations"
    missing = ("hypothesis", "schemathesis", "trustme", "xdist", "pytest_timeout")
    code = f"import pytest, sys; sys.modules.update(dict.fromkeys({missing})); sys.exit(pytest.main({words.split()}))"
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr

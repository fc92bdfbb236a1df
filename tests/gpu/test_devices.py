"""Every implementation, way and precision beside float64 on the CPU; ordinary test runs do it on the CPU alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.common.inputs import Setting, input_sets
from benchmarks.gpu.contenders import COMPILED, EAGER, GRAPHS, has_triton
from benchmarks.gpu.contenders import make as ours
from benchmarks.gpu.correctness import CASES, Case, checks
from yolo_assigner.serve.inference.runners.base import RunnerError
from yolo_loss import DetectionLoss, GroundTruth, TaskAlignedAssigner
from yolo_loss.assignment import dense
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
# On a GPU as large as data come; the CPU is to show only that the code runs.
IMAGE = {"cpu": 64, "cuda": 640}


def setting_of(task: str, device: torch.device, slots: int = 20) -> Setting:
    """Small on the CPU."""
    return Setting(task, 4, slots, image=IMAGE[device.type], classes=3)


@pytest.mark.parametrize("task", ["assigner", "loss", "loss+grad"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_way_is_right(task: str, precision: str, device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    names = [name for name in EAGER if name != "triton" or has_triton(device)]
    names += [*GRAPHS, *(COMPILED if precision == "fp32" else ())] if on_gpu else []
    for name in names:
        found = checks(Case(setting_of(task, device), precision), name, device)["checks"]
        assert found
        assert [check for check in found if not check["ok"]] == []


@pytest.mark.parametrize("implementation", ["auto", "dense", "sparse", "triton"])
def test_the_cases_of_the_benchmark(implementation: str, device: torch.device) -> None:
    if implementation == "triton" and not has_triton(device):
        pytest.skip("needs the package triton and a GPU")
    for name, case in CASES.items():
        found = checks(case if device.type == "cuda" else case.small(), implementation, device)["checks"]
        assert len(found) >= 2
        assert [check for check in found if not check["ok"]] == [], name


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    setting = setting_of("assigner", device)
    sets = input_sets(setting, "fp32", device, 1)
    run = ours(setting, "dense", sets)
    want = run(0)
    monkeypatch.setattr(dense, "PAIRS_PER_CHUNK", 1)
    for one, other in zip(run(0), want, strict=True):  # type: ignore[call-overload]
        assert torch.equal(one, other)


def test_formulations_decide_alike(device: torch.device) -> None:
    setting = setting_of("assigner", device, slots=60)
    sets = input_sets(setting, "fp32", device, 1)
    one, other = (ours(setting, name, sets)(0) for name in ("dense", "sparse"))
    assert one.fg_mask.any()  # type: ignore[attr-defined]
    for left, right in zip(one, other, strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def test_no_ground_truth(device: torch.device) -> None:
    setting = setting_of("loss+grad", device, slots=0)
    sets = input_sets(setting, "fp32", device, 1)
    result = ours(setting, "auto", sets)(0)
    assert isinstance(result, tuple)
    assert all(part.isfinite().all() for part in result)
    assert all((gradient[:, :64] == 0).all() for gradient in result[1:])
    scores, boxes, points = input_sets(setting_of("assigner", device, 0), "fp32", device, 1)[0].predictions
    assert (TaskAlignedAssigner(10, 3)(scores, boxes, points, *sets[0].truth).target_labels == 3).all()


def test_gradients_without_autograd(device: torch.device) -> None:
    setting = setting_of("loss+grad", device)
    (inputs,) = input_sets(setting, "fp32", device, 1)
    for implementation in ("auto", "dense", "sparse"):
        criterion = DetectionLoss(3, STRIDES, implementation=implementation)
        leaves = [level.detach().requires_grad_() for level in inputs.predictions]
        truth = GroundTruth(*inputs.truth)
        want = torch.autograd.grad(criterion.from_padded(join_predictions(leaves, STRIDES, 3, 16), truth).loss, leaves)
        maps = join_predictions(list(inputs.predictions), STRIDES, 3, 16)
        _, got = criterion.gradients_from_padded(maps, truth)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one.view(other.shape), other, rtol=1e-4, atol=1e-6)


def test_models_on_the_device(
    device: torch.device, artifacts_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.contenders.PRESET", "yolov8")
    (tmp_path / "sparse").symlink_to(artifacts_dir)
    for task in ("assigner", "loss+grad"):
        try:
            found = checks(Case(setting_of(task, device)), "onnxruntime sparse", device, tmp_path)["checks"]
        except RunnerError as error:
            pytest.skip(str(error))
        assert len(found) >= 2
        assert all(check["ok"] for check in found)

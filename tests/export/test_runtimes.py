"""Supported versions of ONNX Runtime."""

from __future__ import annotations

import tomllib
from pathlib import Path

import onnxruntime
import pytest

from yolo_assigner.export.contract import load_contract
from yolo_assigner.export.runtimes import OLDEST_ONNX_RUNTIME, why_unsupported
from yolo_assigner.export.verification.runnable import CannotRunError, Runnable

ROOT = Path(__file__).parents[2]


def test_the_oldest_version_is_that_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    bounds = [
        requirement.split(";")[0].split(">=")[1]
        for extra in extras.values()
        for requirement in extra
        if requirement.startswith("onnxruntime")
    ]
    assert bounds == [OLDEST_ONNX_RUNTIME] * 2


@pytest.mark.parametrize(
    "version",
    [
        OLDEST_ONNX_RUNTIME,
        f"{OLDEST_ONNX_RUNTIME}.99",
        f"{OLDEST_ONNX_RUNTIME}.99.dev20260101",
        f"{OLDEST_ONNX_RUNTIME}.99+cu12",
        f"{OLDEST_ONNX_RUNTIME}.99rc1",
        "1.100.0",
        "2.0",
        onnxruntime.__version__,
    ],
)
def test_supported(version: str) -> None:
    assert why_unsupported(version) is None


@pytest.mark.parametrize("version", ["1.2.3", "1.2.99.dev20260101", "1.9.0+cu12", "0.9", "unknown", ""])
def test_unsupported(version: str) -> None:
    reason = why_unsupported(version)
    assert reason is not None
    assert reason.startswith(f"ONNX Runtime {version} is not supported")
    assert f"pip install 'onnxruntime>={OLDEST_ONNX_RUNTIME}'" in reason


def test_models_are_not_verified_in_an_old_version(artifacts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = artifacts_dir / "loss.onnx"
    inputs = load_contract(path.with_suffix(".json")).inputs
    Runnable(path, inputs)
    monkeypatch.setattr(onnxruntime, "__version__", "1.2.3")
    with pytest.raises(CannotRunError, match=r"^ONNX Runtime 1\.2\.3 is not supported"):
        Runnable(path, inputs)

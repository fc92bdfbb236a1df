"""What several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch

from export.hyperparameters import Hyperparameters
from export.onnx_export import export_onnx
from tests.detectors import lively_detector

NUM_CLASSES = 3
KINDS = ("assigner", "loss", "loss_grad")


@pytest.fixture(scope="session")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real exported models of ``KINDS`` (3 classes, sparse), made once per run."""
    return export_kinds(tmp_path_factory.mktemp("artifacts"), "sparse")


@pytest.fixture(scope="session")
def dense_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the formulation that TensorRT takes."""
    return export_kinds(tmp_path_factory.mktemp("dense"), "dense")


@pytest.fixture(scope="session")
def detector_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exported ``detector_loss`` (n, 3 classes, sparse), made once per run; its weights beside it."""
    return export_detector(tmp_path_factory.mktemp("detector"), "sparse")


@pytest.fixture(scope="session")
def dense_detector_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the formulation that TensorRT takes."""
    return export_detector(tmp_path_factory.mktemp("dense_detector"), "dense")


def export_detector(folder: Path, formulation: str) -> Path:
    """Export a detector of random but lively weights."""
    weights = folder / "weights.safetensors"
    safetensors.torch.save_file(lively_detector(NUM_CLASSES).state_dict(), weights)
    numbers = Hyperparameters(num_classes=NUM_CLASSES, scale="n")
    export_onnx("detector_loss", numbers, folder, formulation=formulation, weights=weights)
    return folder


def export_kinds(folder: Path, formulation: str) -> Path:
    """Export one model of each kind."""
    for kind in KINDS:
        export_onnx(kind, Hyperparameters(num_classes=NUM_CLASSES), folder, formulation=formulation)
    return folder

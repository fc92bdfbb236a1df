"""What several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.hyperparameters import Hyperparameters
from export.onnx_export import export_onnx

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


def export_kinds(folder: Path, formulation: str) -> Path:
    """Export one model of each kind."""
    for kind in KINDS:
        export_onnx(kind, Hyperparameters(num_classes=NUM_CLASSES), folder, formulation=formulation)
    return folder

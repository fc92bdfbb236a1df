"""What several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.build import Hyperparameters
from export.onnx_export import export_onnx

NUM_CLASSES = 3


@pytest.fixture(scope="session")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real exported ``assigner`` and ``loss`` (3 classes), made once per run."""
    folder = tmp_path_factory.mktemp("artifacts")
    for kind in ("assigner", "loss"):
        export_onnx(kind, Hyperparameters(num_classes=NUM_CLASSES), folder)
    return folder

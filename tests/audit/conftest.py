"""A detector, and small data sets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch

from examples.dataset import FOLDER, NAMES
from tests.detectors import lively_detector
from yolo_assigner.models import DetectorConfig


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the n detector of one class, random but lively."""
    path = tmp_path_factory.mktemp("weights") / "lively.safetensors"
    safetensors.torch.save_file(lively_detector(DetectorConfig("n", nc=1)).state_dict(), path)
    return path


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    """The sample's pictures and labels in folders of their own."""
    folder = tmp_path / "trees"
    for part, suffix in (("images", "png"), ("labels", "txt")):
        (folder / part).mkdir(parents=True)
        for name in NAMES:
            shutil.copy(FOLDER / f"{name}.{suffix}", folder / part)
    return folder

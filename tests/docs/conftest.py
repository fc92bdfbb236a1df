"""Services that the pages' code talks to, and the objects that it takes for granted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.service import running_service
from tests.exports import NUM_CLASSES, exported_for_examples
from yolo_assigner.models import DetectionModel, DetectorConfig
from yolo_assigner.serve.detection.collate import pad_ground_truth

SIDE = 160


@pytest.fixture(scope="session")
def service(artifacts_dir: Path) -> Iterator[str]:
    """A service with a model of each kind (3 classes) and shared memory; its URL."""
    with running_service(artifacts_dir, "--shared-memory", "yolo-assigner-") as url:
        yield url


@pytest.fixture(scope="session")
def tutorial_service() -> Iterator[str]:
    """A service with the tutorial's models, of one class; its URL."""
    with running_service(exported_for_examples()) as url:
        yield url


@pytest.fixture
def workplace(tmp_path: Path, artifacts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page's code, with exported models in ``artifacts``."""
    shutil.copytree(artifacts_dir, tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def assumed() -> dict[str, Any]:
    """Objects of the reader's own that pages name without making them: a detector, a batch and its maps."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    columns = (np.array([0, 1, 1]), np.array([0, 1, 2]), np.array([[0.5, 0.5, 0.4, 0.3]] * 3, np.float32))
    channels = 4 * 16 + NUM_CLASSES
    return {
        "model": DetectionModel(DetectorConfig("n", nc=NUM_CLASSES)).train(),
        "images": torch.rand(2, 3, SIDE, SIDE),
        "batch": dict(zip(("batch_idx", "cls", "bboxes"), columns, strict=True)),
        "feats": [random.standard_normal((2, channels, SIDE // s, SIDE // s), np.float32) for s in (8, 16, 32)],
        "truth": pad_ground_truth(*columns, batch_size=2, image_size=(SIDE, SIDE)),
    }

"""The committed pictures, labels and maps are what their README says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.dataset import NAMES, SAMPLE, Batch, Sample, load_labels, load_pictures, load_sample, save_sample
from examples.evaluation import iou_matrix
from yolo_assigner.models import DetectionModel, DetectorConfig
from yolo_loss import v8DetectionLoss, xywh2xyxy


@pytest.fixture(scope="module")
def sample() -> Sample:
    return load_sample()


def test_labels_are_the_annotated_trees_as_shares_of_the_picture() -> None:
    labels = load_labels()
    assert np.bincount(labels["batch_idx"]).tolist() == [37, 61]
    assert set(labels["cls"].tolist()) == {0}
    # The first tree of SOAP_061 spans (149, 105) to (173, 129) of 400 pixels: centre 161, 117, sides 24, 24.
    assert labels["bboxes"][0].tolist() == pytest.approx([0.4025, 0.2925, 0.06, 0.06])
    corners = xywh2xyxy(torch.from_numpy(labels["bboxes"]))
    assert corners.min() >= 0
    assert corners.max() <= 1 + 1e-6


def test_pictures_are_resized_and_channels_first() -> None:
    pictures = load_pictures(64)
    assert pictures.shape == (2, 3, 64, 64)
    assert pictures.dtype == np.float32
    assert 0 <= pictures.min() < pictures.max() <= 1
    # OSBS_029 has bright sand and light green: more red than blue. SOAP_061 is the darker one.
    assert pictures[0].mean() < pictures[1].mean()
    assert pictures[1, 0].mean() > pictures[1, 2].mean()


def test_sample_fits_its_pictures(sample: Sample) -> None:
    height, width = sample.image_size
    assert [feat.shape for feat in sample.feats] == [(2, 65, height // s, width // s) for s in (8, 16, 32)]
    assert all(feat.dtype == np.float32 and np.isfinite(feat).all() for feat in sample.feats)
    assert sample.names == NAMES
    for key, column in load_labels().items():
        np.testing.assert_array_equal(sample.batch[key], column)


def test_sample_is_small() -> None:
    assert SAMPLE.stat().st_size < 2_000_000


def test_sample_has_good_and_bad_boxes(sample: Sample) -> None:
    maps = [torch.from_numpy(feat) for feat in sample.feats]
    predictions = DetectionModel(DetectorConfig("n", nc=1)).head.decode(maps)
    trees = xywh2xyxy(torch.from_numpy(sample.batch["bboxes"]) * sample.image_size[0])
    images = torch.from_numpy(sample.batch["batch_idx"])
    best = torch.cat(
        [iou_matrix(trees[images == i], xywh2xyxy(predictions[i, :4].T)).max(dim=1).values for i in range(2)]
    )
    # Of 98 trees a good part has a box that fits well, and a good part has none that would count as found.
    assert (best > 0.8).sum() >= 20
    assert (best < 0.5).sum() >= 10


def test_sample_has_the_loss_of_a_half_trained_detector(sample: Sample) -> None:
    criterion = v8DetectionLoss(DetectionModel(DetectorConfig("n", nc=1)))
    batch = {key: torch.from_numpy(column) for key, column in sample.batch.items()}
    loss, items = criterion([torch.from_numpy(feat) for feat in sample.feats], batch)
    # Random weights begin at 14.1, 300 steps end at 1.4; the loss is times B = 2.
    assert 2 < items.sum() < 7
    assert loss.item() == pytest.approx(2 * items.sum().item(), rel=1e-6)


def test_a_sample_survives_writing_and_reading(tmp_path: Path) -> None:
    feats = [np.full((1, 5, side, side), 0.5, dtype=np.float32) for side in (4, 2, 1)]
    batch: Batch = {
        "batch_idx": np.zeros(1, dtype=np.int64),
        "cls": np.ones(1, dtype=np.int64),
        "bboxes": np.full((1, 4), 0.25, dtype=np.float32),
    }
    save_sample(tmp_path / "sample.npz", Sample(feats, batch, (32, 32), ("a",)))
    read = load_sample(tmp_path / "sample.npz")
    assert (read.image_size, read.names) == ((32, 32), ("a",))
    assert [feat.tolist() for feat in read.feats] == [feat.tolist() for feat in feats]
    assert {key: column.tolist() for key, column in read.batch.items()} == {
        "batch_idx": [0],
        "cls": [1],
        "bboxes": [[0.25, 0.25, 0.25, 0.25]],
    }


def test_reading_the_sample_loads_no_torch() -> None:
    code = "import sys, examples.dataset as d; d.load_sample(); d.load_pictures(32); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"

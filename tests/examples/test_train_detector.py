"""The training example: mirroring, and a run short enough for a test."""

import json
from pathlib import Path

import pytest
import torch

from examples.dataset import load_sample
from examples.train_detector import main
from examples.training import Data, flip, load_data
from yolo_assigner.models import DetectionModel, Detections, DetectorConfig, load_checkpoint


def test_flip_mirrors_pictures_with_their_boxes() -> None:
    images = torch.arange(8.0).view(2, 1, 2, 2)
    boxes = torch.tensor([[0.25, 0.125, 0.5, 0.25], [0.25, 0.125, 0.5, 0.25]])
    batch = {"batch_idx": torch.tensor([0, 1]), "cls": torch.zeros(2), "bboxes": boxes}
    # The first picture left to right, the second top to bottom.
    mirrored = flip(Data(images, batch), torch.tensor([[True, False], [False, True]]))
    assert mirrored.images.flatten(1).tolist() == [[1, 0, 3, 2], [6, 7, 4, 5]]
    assert mirrored.batch["bboxes"].tolist() == [[0.75, 0.125, 0.5, 0.25], [0.25, 0.875, 0.5, 0.25]]
    assert boxes[0].tolist() == [0.25, 0.125, 0.5, 0.25]


def test_a_short_run_lowers_the_loss_and_writes_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--steps", "30", "--size", "192", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    first, *_, last = report["loss_items"]
    assert sum(last) < 0.7 * sum(first)
    assert {name: counts["trees"] for name, counts in report["pictures"].items()} == {"SOAP_061": 37, "OSBS_029": 61}
    printed = capsys.readouterr().out
    assert f"last step: loss {sum(last):.3f}" in printed
    assert "SOAP_061: " in printed

    # The maps are those that the written weights give.
    model = DetectionModel(DetectorConfig("n", nc=1)).eval()
    load_checkpoint(model, tmp_path / "weights.safetensors")
    with torch.no_grad():
        result = model(load_data(192).images)
    assert isinstance(result, Detections)
    for level, feat in zip(result.maps, load_sample(tmp_path / "sample.npz").feats, strict=True):
        torch.testing.assert_close(level, torch.from_numpy(feat), rtol=2e-3, atol=2e-3)

"""Ultralytics' own trainer, one epoch on pieces of the sample pictures."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common.torchvision_nms import complete_torchvision
from benchmarks.parity_training import BATCH, IMAGE, write_dataset
from yolo_loss import TaskAlignedAssigner
from yolo_loss.integrations.ultralytics import use
from yolo_loss.integrations.ultralytics_criterion import DetectionCriterion, EndToEndCriterion

pytest.importorskip("ultralytics", reason="ultralytics is not installed; `make parity` runs these tests beside it")

Seen = list[Any]  # criteria of the model and of its average


@pytest.fixture(scope="module", autouse=True)
def torchvision() -> None:
    complete_torchvision()


def train(name: str, folder: Path, replaced: AbstractContextManager[Any], **options: Any) -> Seen:
    from ultralytics import YOLO

    data = write_dataset(folder / "data", polygons=name.endswith("-seg.yaml"))
    seen: Seen = []
    yolo = YOLO(name)
    yolo.add_callback(
        "on_fit_epoch_end", lambda trainer: seen.extend((trainer.model.criterion, trainer.ema.ema.criterion))
    )
    fixed = {"epochs": 1, "imgsz": IMAGE, "batch": BATCH, "device": "cpu", "workers": 0, "plots": False}
    with replaced:
        yolo.train(data=str(data), project=str(folder), name="run", verbose=False, **fixed, **options)
    checkpoint = folder / "run" / "weights" / "last.pt"
    assert b"yolo_loss" not in checkpoint.read_bytes()
    return seen


@pytest.mark.parametrize("options", [{}, {"cls_pw": 0.5}, {"multi_scale": 0.5}], ids=str)
def test_the_model_and_its_average_get_the_loss(tmp_path: Path, options: dict[str, Any]) -> None:
    seen = train("yolov8n.yaml", tmp_path, use(), **options)
    assert len(seen) >= 2
    assert all(isinstance(criterion, DetectionCriterion) for criterion in seen)
    assert seen[0] is not seen[1]
    weights = seen[0].model.class_weights if "cls_pw" in options else None
    assert weights is None or torch.isfinite(weights).all()


def test_two_branches_count_epochs(tmp_path: Path) -> None:
    model, average = train("yolo26n.yaml", tmp_path, use())[:2]
    assert isinstance(model, EndToEndCriterion)
    assert isinstance(average, EndToEndCriterion)
    assert model.updates == 1


def test_a_student_gets_the_loss(tmp_path: Path) -> None:
    from ultralytics import YOLO

    teacher = tmp_path / "teacher.pt"
    YOLO("yolov8n.yaml").save(teacher)
    seen = train("yolov8n.yaml", tmp_path, use(), distill_model=str(teacher))
    assert isinstance(seen[0], DetectionCriterion)


def test_segmentation_gets_the_assigner(tmp_path: Path) -> None:
    seen = train("yolov8n-seg.yaml", tmp_path, use(assigner_only=True))
    assert all(isinstance(criterion.assigner, TaskAlignedAssigner) for criterion in seen)


def test_segmentation_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"use\(assigner_only=True\)"):
        train("yolov8n-seg.yaml", tmp_path, use())

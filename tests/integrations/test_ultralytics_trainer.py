"""Ultralytics' own trainer, one epoch on pieces of the sample pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
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


def train(
    name: str,
    folder: Path,
    replaced: AbstractContextManager[Any],
    callbacks: Mapping[str, Callable[[Any], None]] = MappingProxyType({}),
    **options: Any,
) -> Seen:
    from ultralytics import YOLO

    data = write_dataset(folder / "data", polygons=name.endswith("-seg.yaml"))
    seen: Seen = []
    yolo = YOLO(name)
    yolo.add_callback(
        "on_fit_epoch_end", lambda trainer: seen.extend((trainer.model.criterion, trainer.ema.ema.criterion))
    )
    for event, callback in callbacks.items():
        yolo.add_callback(event, callback)
    fixed = {"epochs": 1, "imgsz": IMAGE, "batch": BATCH, "device": "cpu", "workers": 0, "plots": False}
    with replaced:
        yolo.train(data=str(data), project=str(folder), name="run", verbose=False, **fixed, **options)
    checkpoint = folder / "run" / "weights" / "last.pt"
    assert b"yolo_loss" not in checkpoint.read_bytes()
    return seen


def test_every_second_batch_is_explained_and_the_training_is_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra audit")
    from yolo_assigner.audit.table import read_rows
    from yolo_assigner.audit.ultralytics_training import UltralyticsAudit

    shown: list[dict[str, Any]] = []
    weights: list[dict[str, Any]] = []
    audit = UltralyticsAudit(every=2)

    def end_batch(trainer: Any) -> None:
        shown.append(trainer.loss_items)
        audit.on_train_batch_end(trainer)

    def end(trainer: Any) -> None:
        weights.append(trainer.model.state_dict())
        audit.on_train_end(trainer)

    audited: dict[str, Callable[[Any], None]] = {
        "on_train_start": audit.on_train_start,
        "on_train_batch_start": audit.on_train_batch_start,
        "on_train_batch_end": end_batch,
        "on_train_end": end,
    }
    for name, events in (("with", audited), ("without", {"on_train_end": end})):
        seen = train("yolov8n.yaml", tmp_path / name, use(), events)
        assert isinstance(seen[0], DetectionCriterion)
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
    files = sorted((tmp_path / "with" / "run" / "explain").iterdir())
    assert [file.name for file in files] == [f"step-{step:08d}.parquet" for step in range(0, len(shown), 2)]
    if find_spec("tensorboard"):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(tmp_path / "with" / "run"))
        board.Reload()
        assert [event.step for event in board.Scalars("explain/learned")] == list(range(0, len(shown), 2))
        assert (board.Images("explain/0")[0].width, board.Images("explain/0")[0].height) == (IMAGE, IMAGE)
    for step, file in zip(range(0, len(shown), 2), files, strict=True):
        rows = list(read_rows([file]))
        assert len({row["image"] for row in rows}) <= BATCH
        # The parts of all objects are what the trainer shows of this very batch.
        total = max(sum(row["weight_sum"] for row in rows), 1.0)
        for term, gain in (("box", 7.5), ("dfl", 1.5)):
            part = gain * sum(row[f"{term}_sum"] for row in rows) / total
            assert part == pytest.approx(float(shown[step][f"{term}_loss"]), rel=1e-4)


def test_two_branches_and_their_own_loss_are_explained(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra audit")
    from ultralytics.utils.loss import E2ELoss

    from yolo_assigner.audit.table import read_rows
    from yolo_assigner.audit.ultralytics_training import UltralyticsAudit

    audit = UltralyticsAudit(tmp_path / "table", every=4)
    events = ("on_train_start", "on_train_batch_start", "on_train_batch_end", "on_train_end")
    seen = train("yolo26n.yaml", tmp_path, nullcontext(), {event: getattr(audit, event) for event in events})
    assert isinstance(seen[0], E2ELoss)
    first, second = sorted((tmp_path / "table").iterdir())
    rows = list(read_rows([first, second]))
    assert {row["reason"] for row in rows} >= {"assigned"}


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

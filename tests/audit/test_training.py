"""The callback of a training: the same table, every N steps, and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("pyarrow", reason="needs the extra audit")

from examples.dataset import load_pictures, load_sample
from yolo_assigner.audit.rows import explain_rows
from yolo_assigner.audit.table import read_facts, read_rows, schema
from yolo_assigner.audit.training import LEARNED, NOT_LEARNED, TrainingAudit, draw_objects, pictures_of
from yolo_loss.criterion import DetectionLoss


def test_every_second_step_is_written(tmp_path: Path) -> None:
    sample, criterion = load_sample(), DetectionLoss(1)
    maps = [torch.from_numpy(level).requires_grad_() for level in sample.feats]
    optimizer = torch.optim.SGD(maps, lr=1.0)
    audit = TrainingAudit(criterion, tmp_path, every=2)
    for step in range(4):
        loss, _ = criterion(maps, sample.batch)
        optimizer.zero_grad()
        loss.backward()
        written = audit(step, maps, sample.batch, names=sample.names)
        assert (written is None) == (step % 2 == 1)
        if written is not None:
            expected = explain_rows(criterion, maps, sample.batch, pictures_of(sample.batch, sample.names)).rows
            found = list(read_rows([written]))
            assert [row["best_iou"] for row in found] == pytest.approx([row["best_iou"] for row in expected])
            assert list(found[0]) == schema().names
        optimizer.step()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000000.parquet", "step-00000002.parquet"]
    facts = read_facts(tmp_path / "step-00000002.parquet")
    assert facts is not None
    assert (facts.images, facts.truths) == (2, 98)


def test_l1_stands_in_the_column_of_the_third_term(tmp_path: Path) -> None:
    sample = load_sample()
    criterion = DetectionLoss(1, reg_max=1)
    maps = [torch.ones(2, 5, *level.shape[2:]) for level in sample.feats]
    written = TrainingAudit(criterion, tmp_path)(0, maps, sample.batch, names=sample.names)
    assert written is not None
    rows = list(read_rows([written]))
    total = max(sum(row["weight_sum"] for row in rows), 1.0)
    shown = criterion(maps, sample.batch)[1]
    assert criterion.loss_names[2] == "l1"
    assert 1.5 * sum(row["dfl_sum"] for row in rows) / total == pytest.approx(float(shown[2]), rel=1e-4)


def test_steps_are_whole_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every is 0"):
        TrainingAudit(DetectionLoss(1), tmp_path, every=0)


def test_objects_are_drawn() -> None:
    rows = [
        {"x1": 2.0, "y1": 3.0, "x2": 6.0, "y2": 9.0, "reason": "assigned"},
        {"x1": 20.0, "y1": 3.0, "x2": 26.0, "y2": 9.0, "reason": "no_anchor"},
        {"x1": 9.0, "y1": 3.0, "x2": 5.0, "y2": 9.0, "reason": "invalid"},
    ]
    drawn = draw_objects(torch.zeros(3, 16, 32), rows)
    assert drawn.shape == (16, 32, 3)
    assert tuple(drawn[3, 2]) == LEARNED
    assert tuple(drawn[9, 26]) == NOT_LEARNED
    assert (drawn.sum(axis=2) > 0).sum() == (2 * 5 + 2 * 5) + (2 * 7 + 2 * 5)


def test_tensorboard_gets_counts_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    sample = load_sample()
    maps = [torch.from_numpy(level) for level in sample.feats]
    with SummaryWriter(str(tmp_path / "board")) as writer:
        audit = TrainingAudit(DetectionLoss(1), tmp_path / "truths", writer=writer)
        audit(100, maps, sample.batch, torch.from_numpy(load_pictures(416)), sample.names)
    found = EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    assert [event.value for event in found.Scalars("explain/learned")] == [1]
    assert [(event.step, event.width, event.height) for event in found.Images("explain/1")] == [(100, 416, 416)]

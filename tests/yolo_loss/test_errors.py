"""Bad input: each error names the value and the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from yolo_loss import DetectionLoss, TaskAlignedAssigner, v8DetectionLoss

STRIDES = (8, 16)


def maps(channels: int = 67) -> list[Tensor]:
    return [torch.zeros(2, channels, 4, 4), torch.zeros(2, channels, 2, 2)]


def batch(**changes: Tensor) -> dict[str, Tensor]:
    plain = {
        "batch_idx": torch.tensor([0, 1]),
        "cls": torch.tensor([0.0, 2.0]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.2, 0.2]]),
    }
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("preds", "targets", "message"),
    [
        (maps(66), batch(), r"preds\[0\] has shape \(2, 66, 4, 4\), expected \(2, 67, \*, \*\)"),
        (maps()[:1], batch(), r"1 maps, but there are 2 strides"),
        ([maps()[0], maps()[1][:1]], batch(), r"preds\[1\] has shape \(1, 67, 2, 2\).*one B"),
        ([level.int() for level in maps()], batch(), r"preds\[0\] has dtype torch.int32"),
        ("maps", batch(), "preds is str"),
        ({"boxes": maps()[0]}, batch(), "without scores, feats"),
        (maps(), batch(cls=torch.tensor([0, 3])), "class 3, but num_classes is 3"),
        (maps(), batch(batch_idx=torch.tensor([0, 2])), "contains 2, but the predictions have 2 images"),
        (maps(), batch(batch_idx=torch.tensor([-1, 0])), "contains -1"),
        (maps(), batch(cls=torch.tensor([0.0])), r"batch\['cls'\] has 1 entries"),
        (maps(), batch(bboxes=torch.zeros(2, 5)), r"batch\['bboxes'\] has shape \(2, 5\)"),
        (maps(), batch(bboxes=torch.zeros(2, 4, dtype=torch.int64)), "expected a floating-point"),
        (maps(), {"cls": torch.zeros(0)}, "lacks batch_idx, bboxes"),
    ],
)
def test_criterion(preds: Any, targets: dict[str, Tensor], message: str) -> None:
    criterion = DetectionLoss(3, STRIDES)
    with pytest.raises(ValueError, match=message):
        criterion(preds, targets)
    assert criterion(maps(), batch())[0].isfinite()


@pytest.mark.parametrize(
    ("position", "tensor", "message"),
    [
        (0, torch.zeros(2, 5, 4), r"pd_scores has shape \(2, 5, 4\), expected \(\*, \*, 3\)"),
        (0, torch.zeros(2, 5, 3, dtype=torch.int64), "pd_scores has dtype torch.int64"),
        (1, torch.zeros(2, 6, 4), r"pd_bboxes has shape \(2, 6, 4\), expected \(2, 5, 4\)"),
        (2, torch.zeros(4, 2), r"anc_points has shape \(4, 2\), expected \(5, 2\)"),
        (3, torch.zeros(2, 2, 1), r"gt_labels has shape \(2, 2, 1\), expected \(2, 1, 1\)"),
        (3, torch.full((2, 1, 1), 3), "gt_labels contains class 3"),
        (4, torch.zeros(3, 1, 4), r"gt_bboxes has shape \(3, 1, 4\)"),
        (5, torch.zeros(2, 1), r"mask_gt has shape \(2, 1\)"),
    ],
)
def test_assigner(position: int, tensor: Tensor, message: str) -> None:
    arguments = [torch.zeros(2, 5, 3), torch.zeros(2, 5, 4), torch.zeros(5, 2)]
    arguments += [torch.zeros(2, 1, 1), torch.zeros(2, 1, 4), torch.zeros(2, 1, 1)]
    assigner = TaskAlignedAssigner(num_classes=3)
    assigner(*arguments)
    arguments[position] = tensor
    with pytest.raises(ValueError, match=message):
        assigner(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0}, "topk is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"topk2": 0}, "topk2 is 0"),
        ({"formulation": "magic"}, "'magic', expected one of dense, sparse, triton, auto"),
        ({"class_loss": "mse"}, "'mse', expected one of bce, varifocal"),
        ({"preset": "yolo99"}, "'yolo99', expected one of yolov8"),
        ({"reg_max": 0}, "reg_max is 0"),
    ],
)
def test_hyperparameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionLoss(**options)


def detector(**changes: Any) -> SimpleNamespace:
    head = SimpleNamespace(nc=3, reg_max=16, stride=torch.tensor([8.0, 16.0]))
    return SimpleNamespace(**{"model": [head], "args": {"box": 1.0, "cls": 2.0, "dfl": 3.0}, **changes})


def test_the_detector_is_read() -> None:
    for model in (detector(), SimpleNamespace(module=detector()), detector(args=SimpleNamespace(box=1, cls=2, dfl=3))):
        criterion = v8DetectionLoss(model, 7, preset="ultralytics-8.4")
        assert (criterion.num_classes, criterion.reg_max, criterion.strides) == (3, 16, (8.0, 16.0))
        assert tuple(criterion.gains) == (1.0, 2.0, 3.0)
        assert (criterion.assigner.params.topk, criterion.assigner.params.min_box_side) == (7, 16.0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SimpleNamespace(), "has no model"),
        (detector(model=[SimpleNamespace(nc=3)]), "lacks reg_max, stride"),
        (detector(model=[SimpleNamespace(nc=3, reg_max=16, stride=torch.zeros(2))]), "expected above 0"),
        (detector(args={"box": 1.0}), "lacks the gains cls, dfl"),
        (detector(args=None), "lacks the gains box, cls, dfl"),
    ],
)
def test_a_detector_that_lacks_something(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        v8DetectionLoss(model)

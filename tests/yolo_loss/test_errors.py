"""Bad input: each error names the value and the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from yolo_loss import DetectionLoss, TaskAlignedAssigner, v8DetectionLoss
from yolo_loss.validate import readable_values

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
        (maps(66), batch(), r"feats\[0\] has shape \(2, 66, 4, 4\), expected \(2, 67, \*, \*\)"),
        (maps()[:1], batch(), r"1 maps, but there are 2 strides"),
        ([maps()[0], maps()[1][:1]], batch(), r"feats\[1\] has shape \(1, 67, 2, 2\).*one B"),
        ([level.int() for level in maps()], batch(), r"feats\[0\] has dtype int32"),
        ("maps", batch(), "feats is str; give a list of maps"),
        ({"boxes": maps()[0]}, batch(), "without scores, feats"),
        (maps(), batch(cls=torch.tensor([0, 3])), r"cls\[1\] is 3, and the number of classes is 3"),
        (maps(), batch(batch_idx=torch.tensor([0, 2])), r"batch_idx\[1\] is 2, and the number of images is 2"),
        (maps(), batch(batch_idx=torch.tensor([-1, 0])), r"batch_idx\[0\] is -1"),
        (maps(), batch(cls=torch.tensor([0.0])), r"cls has 1 entries, batch_idx has 2"),
        (maps(), batch(bboxes=torch.zeros(2, 5)), r"bboxes has shape \(2, 5\)"),
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
        (0, torch.zeros(2, 5, 3, dtype=torch.int64), "pd_scores has dtype int64"),
        (1, torch.zeros(2, 6, 4), r"pd_bboxes has shape \(2, 6, 4\), expected \(2, 5, 4\)"),
        (2, torch.zeros(4, 2), r"anc_points has shape \(4, 2\), expected \(5, 2\)"),
        (3, torch.zeros(2, 2, 1), r"gt_labels has shape \(2, 2, 1\), expected \(2, 1, 1\)"),
        (3, torch.full((2, 1, 1), 3), r"gt_labels\[0, 0\] is 3, and the number of classes is 3"),
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
        ({"implementation": "magic"}, "'magic', expected one of dense, sparse, triton, auto"),
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
        (
            detector(model=[SimpleNamespace(nc=3, reg_max=16, stride=torch.zeros(2))]),
            r"stride\[0\] is 0.0, expected",
        ),
        (detector(args={"box": 1.0}), "lacks the gains cls, dfl"),
        (detector(args=None), "lacks the gains box, cls, dfl"),
    ],
)
def test_a_detector_that_lacks_something(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        v8DetectionLoss(model)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vjp])
def test_values_are_checked_inside_transforms(transform: Any) -> None:
    """Where a tensor has values, but no memory that numpy could look at."""
    criterion = DetectionLoss(3, STRIDES)

    def loss(first: Tensor, cls: Tensor) -> Tensor:
        total: Tensor = criterion([first, maps()[1]], batch(cls=cls))[0]
        return total

    arguments = (loss,) if transform is torch.func.grad else (loss, maps()[0], torch.tensor([0.0, 1.5]))
    with pytest.raises(ValueError, match=r"cls\[1\] is 1.5, and the number of classes is 3"):
        transform(*arguments)(maps()[0], torch.tensor([0.0, 1.5]))


def test_values_are_not_read_where_that_is_not_free() -> None:
    """On another device, in a graph that is traced, and where vmap has a batch of them: there is no one value."""
    labels = torch.tensor([0.0, 9.0])
    assert readable_values(labels.to("meta")) is None
    with FakeTensorMode() as mode:
        assert readable_values(mode.from_tensor(labels)) is None
    seen: list[Any] = []

    def look(column: Tensor) -> Tensor:
        seen.append(readable_values(column))
        return column

    torch.func.vmap(look)(torch.stack((labels, labels)))
    assert seen == [None]
    values = readable_values(labels)
    assert values is not None
    assert np.shares_memory(values, labels.numpy())
    assert readable_values(labels.bfloat16()).tolist() == [0.0, 9.0]  # type: ignore[union-attr]


def test_arrays_and_lists_are_as_good_as_tensors() -> None:
    """Read-only, reversed, of another byte order, and of types that torch takes in other places."""
    criterion, feats = DetectionLoss(3, STRIDES), [torch.randn_like(level) for level in maps()]
    want = criterion(feats, batch())[0]
    boxes = batch()["bboxes"].numpy()
    frozen = boxes.copy()
    frozen.flags.writeable = False
    forms: list[dict[str, Any]] = [
        {name: column.tolist() for name, column in batch().items()},
        {"batch_idx": np.array([0, 1], np.int32), "cls": np.array([[0], [2]], ">i2"), "bboxes": frozen},
        {"batch_idx": np.array([1, 0])[::-1], "cls": torch.tensor([[0], [2]], dtype=torch.uint8), "bboxes": boxes},
        {**batch(), "batch_idx": (0, 1.0), "bboxes": boxes.astype(">f8")},
    ]
    for form in forms:
        assert criterion(feats, form)[0].item() == pytest.approx(want.item(), rel=1e-6)
    arrays = [level.numpy() for level in feats]
    for given in (arrays, (None, arrays), [arrays[0], feats[1]], [level.tolist() for level in feats]):
        assert criterion(given, batch())[0] == want
    empty = criterion(arrays, {"batch_idx": [], "cls": [], "bboxes": []})[1]
    assert empty[[0, 2]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"boxes": torch.zeros(2, 4), "labels": torch.zeros(2)}] * 2, "batch is a list of 2 dict; give a dict with"),
        (torch.zeros(3, 6), r"batch is a Tensor of shape \(3, 6\); give a dict with batch_idx \(T,\), cls"),
        (None, "batch is NoneType; give a dict with"),
        (batch(cls=[[0.0], [1.0, 2.0]]), "cls is a list of 2 list, which is not regular; give one array of numbers"),  # type: ignore[arg-type]
        (batch(cls=["cat", "dog"]), "cls has dtype str96; give real numbers"),  # type: ignore[arg-type]
        (batch(cls=None), "cls has dtype object; give real numbers"),  # type: ignore[arg-type]
    ],
)
def test_batches_of_other_training_loops(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionLoss(3, STRIDES)(maps(), given)


@pytest.mark.parametrize(
    ("preds", "message"),
    [
        (
            (torch.rand(2, 20, 4), torch.rand(2, 20, 3)),
            r"feats\[0\] has shape \(2, 20, 4\), expected \(2, 67, \*, \*\)",
        ),
        (
            ([level[:, 64:] for level in maps()], [level[:, :64] for level in maps()]),
            r"\(2, 64, 4, 4\), expected \(2, 67",
        ),
        (torch.rand(2, 20, 67), r"feats is a Tensor of shape \(2, 20, 67\); give a list of maps \(B, 4R \+ C, H, W\)"),
        ([], r"feats has 0 maps, but there are 2 strides; .* for each of strides 8, 16, not nothing"),
        (None, "feats is NoneType; give a list of maps"),
        (maps()[::-1], r"an image of 16 x 16 pixels, .* give the maps in the order of strides 8, 16, all of the same"),
        ([maps()[0], torch.zeros(2, 67, 2, 3)], r"2 x 3 cells of stride 16, an image of 32 x 48 pixels"),
        ([maps()[0], torch.zeros(2, 67, 0, 0)], r"feats\[1\] has shape \(2, 67, 0, 0\), no cells; give larger images"),
        ([maps()[0], None], r"feats\[1\] has dtype object; give real numbers"),
    ],
)
def test_predictions_of_other_training_loops(preds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionLoss(3, STRIDES)(preds, batch())


@pytest.mark.parametrize(
    "sizes", [(19, 22, 10, 11, 5, 6), (18, 21, 9, 10, 4, 5), (1, 1, 1, 1, 1, 1), (19, 22, 9, 11, 5, 5)]
)
def test_networks_round_odd_sizes(sizes: tuple[int, ...]) -> None:
    """Up, down, or level by level: images of 150 x 170 pixels and of 8 x 8."""
    feats = [torch.zeros(2, 67, *sizes[2 * level : 2 * level + 2]) for level in range(3)]
    assert DetectionLoss(3)(feats, batch())[0].isfinite()

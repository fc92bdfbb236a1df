"""Boxes that a head cannot express are counted, and warned of once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from yolo_loss import DetectionLoss, EndToEndLoss, LossResult

CELLS = 9
WARNING = "even the level of stride 8 ends at 24 pixels"


def maps(reg_max: int = 4, cells: int = CELLS) -> Tensor:
    # Distances of R - 1 cells everywhere: boxes that overlap with large ones.
    level = torch.zeros(1, 4 * reg_max + 1, cells, cells)
    level[:, reg_max - 1 : 4 * reg_max : reg_max] = 9.0
    return level


def evaluate(criterion: DetectionLoss, width: float, height: float) -> LossResult:
    """With one box in the middle; sizes in cells of the first level."""
    batch = {"batch_idx": [0], "cls": [0], "bboxes": [[0.5, 0.5, width / CELLS, height / CELLS]]}
    sizes = [CELLS // 3**level for level in range(len(criterion.strides))]
    return criterion.evaluate([maps(criterion.reg_max, cells) for cells in sizes], batch)


def sides(result: LossResult) -> tuple[int, float]:
    assert result.clipped is not None
    return int(result.clipped.sides), float(result.clipped.longest)


@pytest.mark.parametrize("implementation", ["sparse", "dense"])
def test_sides_by_hand(implementation: str) -> None:
    """R = 4 ends at 2.99 cells. The anchor in the middle has the largest overlap; sides lie half the box from it."""
    options: dict[str, Any] = {"topk": 1, "implementation": implementation}
    criterion = DetectionLoss(1, (8,), 4, **options)
    assert sides(evaluate(criterion, 5.9, 5.9)) == (0, 0.0)
    with pytest.warns(UserWarning, match=WARNING) as caught:
        result = evaluate(criterion, 7, 5)
    assert sides(result) == (2, 28.0)
    # 28 pixels are 3.5 cells, ceil(3.5 + 1.01) bins, or 2.99 cells of ceil(9.36) pixels.
    assert [str(warning.message) for warning in caught] == [
        "boxes have sides up to 28 pixels from their anchor, but with reg_max 4 even the level of stride 8 ends at 24 "
        "pixels, so such boxes cannot be learned in full; a head with reg_max 5 would do, or a further level of "
        "stride 10"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sides(evaluate(criterion, 7, 7)) == (4, 28.0)  # counted, and not warned of again
        assert sides(evaluate(DetectionLoss(1, (8,), 5, **options), 7, 7)) == (0, 0.0)


def test_what_a_coarser_level_reaches_is_counted_only() -> None:
    """Three cells of stride 24 hold the box, but the fine level's anchors, nine to one, are among its ten."""
    count, longest = sides(evaluate(DetectionLoss(1, (8, 24), 4), 7, 7))
    assert count > 4
    assert 24 < longest <= 2.99 * 24


def test_without_boxes_nothing_is_clipped() -> None:
    result = DetectionLoss(1, (8,), 4).evaluate([maps()], {"batch_idx": [], "cls": [], "bboxes": []})
    assert sides(result) == (0, 0.0)


class Operations(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> int:
    counted = Operations()
    with counted:
        call()
    return counted.count


def test_nothing_is_counted_where_nothing_reads_it() -> None:
    criterion = DetectionLoss(1, (8,), 4, topk=1)
    batch = {"batch_idx": [0], "cls": [0], "bboxes": [[0.5, 0.5, 7 / CELLS, 5 / CELLS]]}
    with pytest.warns(UserWarning, match=WARNING):  # as long as it has not warned, it counts to warn
        criterion([maps()], batch)
    assert criterion.evaluate([maps()], batch, count_clipped=False).clipped is None
    assert sides(criterion.evaluate([maps()], batch)) == (2, 28.0)
    counted = operations(lambda: criterion.evaluate([maps()], batch))
    saved = operations(lambda: criterion.evaluate([maps()], batch, count_clipped=False))
    assert operations(lambda: criterion([maps()], batch)) == saved < counted


def test_sides_are_looked_at_where_a_box_is_large_enough() -> None:
    """R = 4 ends at 2.99 cells, so no side of a box of 2.9 is longer. It is not counted to warn, one of 3 cells is."""
    criterion = DetectionLoss(1, (8,), 4, topk=1)

    def count(cells: float) -> int:
        batch = {"batch_idx": [0], "cls": [0], "bboxes": [[0.5, 0.5, cells / CELLS, cells / CELLS]]}
        return operations(lambda: criterion([maps()], batch))

    assert count(2.9) < count(3.0)


def test_both_parts_of_an_end_to_end_loss_count_or_do_not() -> None:
    criterion = EndToEndLoss(1, (8,), 4, epochs=2)
    parts = {"one2many": [maps()], "one2one": [maps()]}
    batch = {"batch_idx": [0], "cls": [0], "bboxes": [[0.5, 0.5, 7 / CELLS, 5 / CELLS]]}
    with pytest.warns(UserWarning, match=WARNING):
        counted = criterion.evaluate(parts, batch)
    assert counted.one2many.clipped is not None
    assert counted.one2one.clipped is not None
    result = criterion.evaluate(parts, batch, count_clipped=False)
    assert (result.one2many.clipped, result.one2one.clipped) == (None, None)


def test_a_result_of_another_device_is_warned_of_when_asked() -> None:
    with pytest.warns(UserWarning, match=WARNING):
        result = evaluate(DetectionLoss(1, (8,), 4, topk=1), 7, 5)
    fresh = DetectionLoss(1, (8,), 4)
    with pytest.warns(UserWarning, match=WARNING):
        fresh.warn_of_clipped(result)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.warn_of_clipped(result)

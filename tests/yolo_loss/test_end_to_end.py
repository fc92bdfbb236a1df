"""The loss of a one-to-many and a one-to-one part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_loss_inputs
from yolo_loss import DetectionLoss, EndToEndLoss, GroundTruth

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(2, 5, pyramid(64, 96, STRIDES), 3)


def sample(reg_max: int = 1) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    many, *truth = sample_loss_inputs(CASE, STRIDES, reg_max, seed=0)
    one, *_ = sample_loss_inputs(CASE, STRIDES, reg_max, seed=1)
    preds = {"one2many": [feat.double() for feat in many], "one2one": [feat.double() for feat in one]}
    return preds, ragged_batch(GroundTruth(*truth), (64, 96))


@pytest.mark.parametrize(
    ("epochs", "shares"),
    [
        # 0.8 - 0.7 e / (E - 1), at least 0.1
        (5, [0.8, 0.625, 0.45, 0.275, 0.1, 0.1]),
        (1, [0.8, 0.1, 0.1]),
        (2, [0.8, 0.1, 0.1]),
    ],
)
def test_shares_by_hand(epochs: int, shares: list[float]) -> None:
    criterion = EndToEndLoss(3, STRIDES, 1, epochs=epochs)
    for epoch, share in enumerate(shares):
        assert criterion.updates == epoch
        assert criterion.one2many_share == pytest.approx(share, rel=1e-14)
        criterion.update()


def test_a_training_that_is_resumed() -> None:
    criterion = EndToEndLoss(3, STRIDES, 1, epochs=5)
    criterion.updates = 3
    assert criterion.one2many_share == pytest.approx(0.275, rel=1e-14)
    assert copy.deepcopy(criterion).one2many_share == criterion.one2many_share


@pytest.mark.parametrize("reg_max", [1, 8])
@pytest.mark.parametrize("updates", [0, 2])
def test_both_losses_with_their_shares(reg_max: int, updates: int) -> None:
    preds, batch = sample(reg_max)
    criterion = EndToEndLoss(3, STRIDES, reg_max, epochs=5, class_loss="varifocal")
    criterion.updates = updates
    many = DetectionLoss(3, STRIDES, reg_max, topk=10, class_loss="varifocal").evaluate(preds["one2many"], batch)
    one = DetectionLoss(3, STRIDES, reg_max, topk=7, topk2=1, class_loss="varifocal").evaluate(preds["one2one"], batch)
    result = criterion.evaluate(preds, batch)
    share = {0: 0.8, 2: 0.45}[updates]
    assert result.loss.item() == pytest.approx(share * many.loss.item() + (1 - share) * one.loss.item(), rel=1e-14)
    assert torch.equal(result.loss_items, one.loss_items)
    assert torch.equal(result.one2many.image_sums, many.image_sums)
    assert torch.equal(result.one2one.image_sums, one.image_sums)
    # One to one: each of the five boxes has at most one anchor.
    assert result.one2one.assignment.fg_mask.sum(dim=1).max() <= CASE.slots < many.assignment.fg_mask.sum(dim=1).max()
    loss, items = criterion((torch.zeros(1), preds), batch)
    assert torch.equal(loss, result.loss)
    assert torch.equal(items, result.loss_items)
    assert criterion.loss_names == ("box", "cls", "l1" if reg_max == 1 else "dfl")


@pytest.mark.parametrize("implementation", ["sparse", "dense"])
def test_gradients_are_those_of_both_losses(implementation: str) -> None:
    preds, batch = sample()
    leaves = {name: [feat.requires_grad_() for feat in maps] for name, maps in preds.items()}
    criterion = EndToEndLoss(3, STRIDES, 1, epochs=3, implementation=implementation)
    criterion(leaves, batch)[0].backward()
    for name, share, part in (("one2many", 0.8, criterion.one2many), ("one2one", 0.2, criterion.one2one)):
        want = torch.autograd.grad(part(leaves[name], batch)[0], leaves[name])
        for leaf, gradient in zip(leaves[name], want, strict=True):
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad, share * gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("preds", "message"),
    [
        ({"one2many": []}, "preds is dict without one2one; give a dict of one2many and one2one"),
        ([torch.zeros(1)], "preds is a list of 1 Tensor without one2many, one2one"),
    ],
)
def test_what_is_refused(preds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EndToEndLoss(3, STRIDES, 1, epochs=3)(preds, {})
    with pytest.raises(ValueError, match="epochs is 0, expected a whole number, at least 1"):
        EndToEndLoss(epochs=0)

"""The L1 term of heads that give distances themselves (reg_max 1), by hand, and heads with two lists of maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_loss_inputs
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.losses import l1_loss

IMPLEMENTATIONS = ["auto", "sparse", "dense"]


def test_the_term_by_hand() -> None:
    """Sides (1, 2, 3, 4) beside targets (2, 2, 1, 8): errors 1, 0, 2, 4 cells, a quarter and half of the image each."""
    target = torch.tensor([5.0 - 2, 5.0 - 2, 5.0 + 1, 5.0 + 8])
    got = l1_loss(torch.tensor([1.0, 2, 3, 4]), target, torch.tensor([5.0, 5.0]), torch.tensor([0.25, 0.5]))
    assert got.item() == pytest.approx((1 * 0.25 + 0 * 0.5 + 2 * 0.25 + 4 * 0.5) / 4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_loss_by_hand(implementation: str) -> None:
    """One image of 4 x 2 cells of stride 8, 32 x 16 pixels; anchor (12, 4) and a box around it, beyond any bin."""
    maps = torch.zeros(1, 5, 2, 4, dtype=torch.float64)
    maps[0, :4, 0, 1] = torch.tensor([1.0, 0.25, 1.25, 0.5])  # 4..22, 2..8 pixels
    maps.requires_grad_()
    # The target's distances are (9, 3, 15, 7) pixels: (1, 1, 5, 3) off. A second anchor inside, (20, 4), has no box.
    truth = {"batch_idx": [0], "cls": [0], "bboxes": [[(3 + 27) / 2 / 32, (1 + 11) / 2 / 16, 24 / 32, 10 / 16]]}
    criterion = DetectionLoss(1, (8,), 1, implementation=implementation)
    assert criterion.loss_names == ("box", "cls", "l1")
    result = criterion.evaluate([maps], truth)
    assert result.assignment.fg_mask.nonzero().tolist() == [[0, 1]]
    weight = float(result.assignment.target_weights.sum())
    want = (1 / 32 + 1 / 16 + 5 / 32 + 3 / 16) / 4
    assert float(result.image_sums[0, 2].detach()) == pytest.approx(want * weight, rel=1e-12)
    assert float(result.loss_items[2]) == pytest.approx(1.5 * want * weight, rel=1e-12)
    (gradient,) = torch.autograd.grad(result.image_sums[0, 2], maps)
    # Each predicted distance is too short: a cell more takes stride / side off, a quarter of it in the mean.
    sides = [-8 / 32 / 4, -8 / 16 / 4, -8 / 32 / 4, -8 / 16 / 4]
    assert gradient[0, :4, 0, 1].tolist() == pytest.approx([side * weight for side in sides], rel=1e-12)
    assert int((gradient != 0).sum()) == 4
    assert result.clipped is None


def test_names_with_distributions() -> None:
    assert DetectionLoss(1).loss_names == ("box", "cls", "dfl")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reg_max", [1, 8])
@pytest.mark.parametrize(
    "layout", [lambda feat: feat, lambda feat: feat.contiguous(memory_format=torch.channels_last)], ids=["NCHW", "NHWC"]
)
def test_two_lists_of_maps(implementation: str, reg_max: int, layout: Callable[[Tensor], Tensor]) -> None:
    strides = (8.0, 16.0, 32.0)
    feats, *truth = sample_loss_inputs(Case(2, 5, pyramid(64, 96, strides), 3), strides, reg_max, seed=1)
    batch = ragged_batch(GroundTruth(*truth), (64, 96))
    criterion = DetectionLoss(3, strides, reg_max, implementation=implementation)
    leaves = [feat.clone().requires_grad_() for feat in feats]
    want = criterion.evaluate(leaves, batch)
    want.loss.backward()
    boxes = [layout(feat[:, : 4 * reg_max].clone()).requires_grad_() for feat in feats]
    classes = [layout(feat[:, 4 * reg_max :].clone()).requires_grad_() for feat in feats]
    got = criterion.loss_from_maps(classes, boxes, batch)
    got.loss.backward()
    torch.testing.assert_close(got.image_sums, want.image_sums, rtol=1e-6, atol=0)
    for leaf, box, cls in zip(leaves, boxes, classes, strict=True):
        assert leaf.grad is not None
        assert box.grad is not None
        assert cls.grad is not None
        assert cls.grad.stride() == cls.stride()
        torch.testing.assert_close(torch.cat((box.grad, cls.grad), dim=1), leaf.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "boxes", "message"),
    [
        ([torch.zeros(1, 2, 4, 4)], [torch.zeros(1, 4, 4, 4)], r"class_maps\[0\] has shape \(1, 2, 4, 4\), expected"),
        ([torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 3, 4, 4)], r"box_maps\[0\] has shape \(1, 3, 4, 4\), expected"),
        ([torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 4, 4, 2)], r"box_maps\[0\] has shape .* as in class_maps\[0\]"),
        (torch.zeros(1, 3, 4, 4), [torch.zeros(1, 4, 4, 4)], "class_maps is a Tensor of shape .* give a list of maps"),
        ([torch.zeros(1, 3, 4, 4)] * 2, [torch.zeros(1, 4, 4, 4)], "2 maps, but there are 1 strides"),
    ],
)
def test_two_lists_that_are_refused(classes: list[Tensor], boxes: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionLoss(3, (8,), 1).loss_from_maps(classes, boxes, {"batch_idx": [], "cls": [], "bboxes": []})

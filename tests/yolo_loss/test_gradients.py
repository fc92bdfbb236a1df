"""Gradients without autograd beside autograd's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_assigner.export.samples import Case, pyramid, sample_loss_inputs
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.predictions import join_predictions
from yolo_loss.reductions.foreground import Rows, row_gradients, row_losses

STRIDES = (8.0, 16.0, 32.0)


def by_autograd(criterion: DetectionLoss, feats: list[Tensor], ground_truth: GroundTruth) -> list[Tensor]:
    """What ``loss.backward()`` writes."""
    leaves = [feat.clone().requires_grad_() for feat in feats]
    predictions = join_predictions(leaves, STRIDES, criterion.num_classes, criterion.reg_max)
    return list(torch.autograd.grad(criterion.from_padded(predictions, ground_truth).loss, leaves))


@pytest.mark.parametrize("implementation", ["dense", "sparse"])
@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
@pytest.mark.parametrize(("reg_max", "slots"), [(16, 7), (1, 7), (4, 0)])
def test_same_as_autograd(implementation: str, class_loss: str, reg_max: int, slots: int) -> None:
    case = Case(3, slots, pyramid(96, 128, STRIDES), 5)
    feats, *truth = sample_loss_inputs(case, STRIDES, reg_max, seed=4)
    feats, ground_truth = [feat.double() for feat in feats], GroundTruth(*truth)
    # The other implementation is what autograd goes through: the two share no gradient code.
    other = {"dense": "sparse", "sparse": "dense"}[implementation]
    options = {"reg_max": reg_max, "class_loss": class_loss, "topk": 4}
    want = by_autograd(DetectionLoss(5, STRIDES, implementation=other, **options), feats, ground_truth)  # type: ignore[arg-type]
    criterion = DetectionLoss(5, STRIDES, implementation=implementation, **options)  # type: ignore[arg-type]
    result, got = criterion.gradients_from_padded(join_predictions(feats, STRIDES, 5, reg_max), ground_truth)
    assert bool(result.assignment.fg_mask.any()) == bool(slots)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.view(theirs.shape), theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reg_max", [16, 1])
def test_rows_in_closed_form_are_those_of_autograd(reg_max: int) -> None:
    """Also for boxes apart from their targets, and where sides are equal, between which the derivative is divided."""
    generator = torch.Generator().manual_seed(0)
    size, logit, scale, point, sides = (
        torch.rand((40, width), generator=generator, dtype=torch.float64) for width in (4 * reg_max, 1, 2, 2, 4)
    )
    target = torch.cat((point - 4 * sides[:, :2], point + 4 * sides[:, 2:]), dim=1)
    target[:5] += 100
    target[5:20, 0::3] = (point + torch.tensor([-7.5, 7.5]))[5:20]  # the distance that equal logits expect
    distri = torch.where(torch.arange(40)[:, None] < 20, 7.5 if reg_max == 1 else 0.0, 4 * size).requires_grad_()
    rows = Rows(distri, logit[:, 0], logit[:, 0], target, point, scale if reg_max == 1 else None)
    want, got = row_losses(rows, reg_max, "bce"), row_gradients(rows, reg_max, "bce")
    for ours, theirs in zip(got.losses, want, strict=True):
        assert torch.equal(ours, theirs)
    for loss, gradient in ((want.box, got.box_grad_distri), (want.dfl, got.dfl_grad_distri)):
        (expected,) = torch.autograd.grad(loss.sum(), distri, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("implementation", ["dense", "sparse"])
def test_background_that_is_no_number_stays_out_of_the_boxes(implementation: str) -> None:
    """One background anchor's distribution is NaN: its gradient is 0 and that of all others as before."""
    feats, *truth = sample_loss_inputs(Case(1, 2, pyramid(64, 64, STRIDES), 2), STRIDES, 16, seed=1)
    criterion = DetectionLoss(2, STRIDES, implementation=implementation)

    def run() -> tuple[Tensor, list[Tensor]]:
        result, gradients = criterion.gradients_from_padded(
            join_predictions(feats, STRIDES, 2, 16), GroundTruth(*truth)
        )
        return result.assignment.fg_mask, gradients

    mask, before = run()
    background = int((~mask[0, :64]).nonzero()[0])
    feats[0][0, :64].view(64, -1)[:, background] = torch.nan
    _, after = run()
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (after[0][0, :64, background] == 0).all()

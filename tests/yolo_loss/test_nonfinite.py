"""Numbers that are not finite stay where they are: in their own term, image and gradient entry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from yolo_assigner.export.samples import Case, pyramid, sample_loss_inputs
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.predictions import join_predictions
from yolo_loss.structures import LossResult

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(3, 6, pyramid(64, 96, STRIDES), 3)
BOXES, CLASSES = slice(0, 64), slice(64, 67)
KINDS = [
    ("auto", "bce"),
    ("sparse", "bce"),
    ("dense", "bce"),
    ("sparse", "varifocal"),
    ("dense", "varifocal"),
]
BOX, CLS, DFL, SCORES = range(4)


def sample() -> tuple[list[Tensor], GroundTruth]:
    feats, *truth = sample_loss_inputs(CASE, STRIDES, 16, seed=4)
    return [feat.double() for feat in feats], GroundTruth(truth[0], truth[1].double(), truth[2])


def evaluate(
    feats: list[Tensor], truth: GroundTruth, implementation: str, class_loss: str
) -> tuple[LossResult, list[Tensor]]:
    """The loss and its gradients by autograd."""
    criterion = DetectionLoss(3, STRIDES, implementation=implementation, class_loss=class_loss)
    leaves = [feat.clone().requires_grad_() for feat in feats]
    result = criterion.from_padded(join_predictions(leaves, STRIDES, 3, 16), truth)
    return result._replace(image_sums=result.image_sums.detach()), list(torch.autograd.grad(result.loss, leaves))


def foreground_of(result: LossResult, level: int) -> Tensor:
    """(B, H, W) bool, the foreground of one level."""
    sizes = [height * width for height, width in CASE.grids]
    flags: Tensor = result.assignment.fg_mask.split(sizes, dim=1)[level]
    return flags.view(CASE.batch, *CASE.grids[level])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("implementation", "class_loss"), KINDS)
def test_a_class_logit_of_the_background(implementation: str, class_loss: str, value: float) -> None:
    feats, truth = sample()
    want, want_gradients = evaluate(feats, truth, implementation, class_loss)
    image, y, x = (~foreground_of(want, 0)).nonzero()[5].tolist()
    # A class that no ground truth of the image has, so that the assignment cannot change either.
    truth.gt_labels[image] = 0
    want, want_gradients = evaluate(feats, truth, implementation, class_loss)
    feats[0][image, 66, y, x] = value
    got, gradients = evaluate(feats, truth, implementation, class_loss)

    assert torch.equal(got.assignment.target_weights, want.assignment.target_weights)
    for term in (BOX, DFL, SCORES):
        assert torch.equal(got.image_sums[:, term], want.image_sums[:, term])
    others = torch.arange(CASE.batch) != image
    assert torch.equal(got.image_sums[others], want.image_sums[others])
    spoilt = float(got.image_sums[image, CLS])
    if value == -math.inf:
        assert math.isfinite(spoilt)
    else:
        assert spoilt == value or (math.isnan(value) and math.isnan(spoilt))
    for level, (one, other) in enumerate(zip(gradients, want_gradients, strict=True)):
        differing = (~torch.isclose(one, other, rtol=1e-12, atol=0, equal_nan=False)).nonzero().tolist()
        assert differing in ([], [[image, 66, y, x]]), level
    own = float(gradients[0][image, 66, y, x])
    assert math.isfinite(own) == (not math.isnan(value) and not (class_loss == "varifocal" and value > 0))


@pytest.mark.parametrize(("implementation", "class_loss"), KINDS)
def test_an_infinite_logit_of_the_assigned_class(implementation: str, class_loss: str) -> None:
    """The loss is +inf, as it is of a logit without end, and the gradient is that of a probability of 1."""
    feats, truth = sample()
    truth.gt_labels[:] = 1
    result, _ = evaluate(feats, truth, implementation, class_loss)
    image, y, x = foreground_of(result, 0).nonzero()[0].tolist()
    feats[0][image, 65, y, x] = math.inf
    result, gradients = evaluate(feats, truth, implementation, class_loss)

    assert bool(foreground_of(result, 0)[image, y, x])
    place = y * CASE.grids[0][1] + x
    weight = float(result.assignment.target_weights[image, place])
    assert 0 < weight < 1
    assert result.image_sums[image, CLS] == math.inf
    assert torch.isfinite(result.image_sums[:, [BOX, DFL, SCORES]]).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    scale = 0.5 * CASE.batch / max(float(result.image_sums[:, SCORES].sum()), 1.0)
    residual = 1 - weight if class_loss == "bce" else weight * (1 - weight)
    assert float(gradients[0][image, 65, y, x]) == pytest.approx(residual * scale, rel=1e-9)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("implementation", "class_loss"), KINDS)
def test_a_distribution_of_the_background(implementation: str, class_loss: str, value: float) -> None:
    feats, truth = sample()
    image, y, x = (~foreground_of(evaluate(feats, truth, implementation, class_loss)[0], 1)).nonzero()[0].tolist()
    feats[1][image, BOXES, y, x] = 0.0  # a box that far from all others is background
    feats[1][image, 0, y, x] = 50.0
    want, want_gradients = evaluate(feats, truth, implementation, class_loss)
    assert not bool(foreground_of(want, 1)[image, y, x])
    feats[1][image, 3, y, x] = value
    got, gradients = evaluate(feats, truth, implementation, class_loss)
    assert torch.equal(got.image_sums, want.image_sums)
    for one, other in zip(gradients, want_gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("implementation", ["auto", "sparse", "dense"])
def test_a_bin_of_probability_0(implementation: str) -> None:
    """A distribution's logit of -inf beside its target has no part in the term."""
    feats, truth = sample()
    result, _ = evaluate(feats, truth, implementation, "bce")
    image, y, x = foreground_of(result, 0).nonzero()[0].tolist()
    # Bin 15 of the left side: no target lies there, since distances end at 14.99 and boxes here are smaller.
    feats[0][image, 15, y, x] = -math.inf
    got, gradients = evaluate(feats, truth, implementation, "bce")
    assert bool(foreground_of(got, 0)[image, y, x])
    assert torch.isfinite(got.image_sums).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("content", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize(("implementation", "class_loss"), KINDS)
def test_a_padded_slot_may_hold_anything(implementation: str, class_loss: str, content: float) -> None:
    feats, (labels, boxes, mask) = sample()
    mask[:, 0] = False  # slot 0 is what background anchors refer to
    boxes[:, 0] = 0.0
    want, want_gradients = evaluate(feats, GroundTruth(labels, boxes, mask), implementation, class_loss)
    dirty = boxes.clone()
    dirty[:, 0] = content
    dirty[1, 0, 2:] = 5.0
    got, gradients = evaluate(feats, GroundTruth(labels, dirty, mask), implementation, class_loss)
    assert torch.equal(got.image_sums, want.image_sums)
    assert torch.equal(got.assignment.target_weights, want.assignment.target_weights)
    for one, other in zip(gradients, want_gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("implementation", ["auto", "sparse", "dense"])
def test_an_overflow_in_half_precision_leaves_the_weights_alone(implementation: str) -> None:
    """One step of training in float16 without a scaler, with one class logit beyond 65,504."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 67, 3, 8, 1)
    maps = [layer(torch.rand(2, 3, 64, 64)).half(), torch.zeros(2, 67, 4, 4).half(), torch.zeros(2, 67, 2, 2).half()]
    spike = torch.zeros_like(maps[0])
    spike[0, 64, 0, 0] = 7e4
    assert spike[0, 64, 0, 0] == math.inf
    boxes = torch.tensor([[[8.0, 8.0, 40.0, 48.0]], [[20.0, 4.0, 60.0, 30.0]]])
    truth = GroundTruth(torch.tensor([[[1]], [[2]]]), boxes, torch.ones(2, 1, 1, dtype=torch.bool))
    criterion = DetectionLoss(3, STRIDES, implementation=implementation)
    result = criterion.from_padded(join_predictions([maps[0] + spike, *maps[1:]], STRIDES, 3, 16), truth)
    assert result.loss == math.inf
    result.loss.backward()
    assert layer.weight.grad is not None
    assert torch.isfinite(layer.weight.grad).all()
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
@pytest.mark.parametrize("implementation", ["auto", "sparse", "dense"])
def test_an_infinite_logit_of_a_target_of_1(implementation: str, class_loss: str) -> None:
    """A perfect box of a certain class: the sum of all is infinite, whatever the target is."""
    maps = [torch.zeros(1, 7, size, size) for size in (4, 2, 1)]
    maps[0][0, :4, 1, 1] = 1.0
    maps[0][0, 4, 1, 1] = math.inf
    truth = GroundTruth(torch.zeros(1, 1, 1).long(), torch.tensor([[[4.0, 4, 20, 20]]]), torch.ones(1, 1, 1).bool())
    leaves = [level.requires_grad_() for level in maps]
    criterion = DetectionLoss(3, STRIDES, 1, topk=1, implementation=implementation, class_loss=class_loss)
    result = criterion.from_padded(join_predictions(leaves, STRIDES, 3, 1), truth)
    assert result.assignment.target_weights.max() == 1
    assert result.image_sums[0, CLS] == math.inf
    for gradient in torch.autograd.grad(result.loss, leaves):
        assert torch.isfinite(gradient).all()

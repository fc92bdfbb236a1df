"""Class weights and regions to ignore: beside the slow oracle and by hand, in every implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import yolo_loss.class_factors
from tests import loss_oracle
from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_loss_inputs
from yolo_loss import ClassInputs, DetectionLoss, GroundTruth, LossResult
from yolo_loss.class_factors import anchors_inside
from yolo_loss.execution import chunks
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(3, 5, pyramid(64, 96, STRIDES), 4)
IMPLEMENTATIONS = ["auto", "sparse", "dense"]
# torch's own, inside forward mode and vmap.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
CLASS_LOSSES = ["bce", "varifocal"]
# The second image has no class 2, and its class 0 counts three times.
WEIGHTS = torch.tensor([[1.0, 0.5, 2.0, 0.25], [3.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.5, 0.0]], dtype=torch.float64)
REGIONS = torch.tensor([[[0, 0, 40, 64], [30, 20, 96, 50.5]], [[5, 5, 21, 61], [0, 0, 96, 64]], [[0, 0, 60, 60]] * 2])
MASK = torch.tensor([[[1], [1]], [[1], [0]], [[0], [1]]]).bool()
INPUTS = {
    "weights": ClassInputs(WEIGHTS),
    "regions": ClassInputs(None, REGIONS.double(), MASK),
    "both": ClassInputs(WEIGHTS, REGIONS.double(), MASK),
}


def sample(reg_max: int = 4, case: Case = CASE, seed: int = 3) -> tuple[list[Tensor], GroundTruth]:
    feats, *truth = sample_loss_inputs(case, STRIDES, reg_max, seed)
    return [feat.double() for feat in feats], GroundTruth(truth[0], truth[1].double(), truth[2])


def evaluate(criterion: DetectionLoss, feats: list[Tensor], truth: GroundTruth, inputs: ClassInputs) -> LossResult:
    joined = join_predictions(feats, criterion.strides, criterion.num_classes, criterion.reg_max)
    return criterion.from_padded(joined, truth, inputs)


def gradients(criterion: DetectionLoss, feats: list[Tensor], truth: GroundTruth, inputs: ClassInputs) -> list[Tensor]:
    leaves = [feat.clone().requires_grad_() for feat in feats]
    return list(torch.autograd.grad(evaluate(criterion, leaves, truth, inputs).loss, leaves))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
@pytest.mark.parametrize("which", list(INPUTS))
@pytest.mark.parametrize("reg_max", [4, 1])
def test_agrees_with_the_oracle(implementation: str, class_loss: str, which: str, reg_max: int) -> None:
    feats, truth = sample(reg_max)
    criterion = DetectionLoss(4, STRIDES, reg_max, implementation=implementation, class_loss=class_loss)
    result = evaluate(criterion, feats, truth, INPUTS[which])
    arrays: dict[str, Any] = {
        name: field.numpy() for name, field in INPUTS[which]._asdict().items() if field is not None
    }
    loss, items, sums = loss_oracle.loss(
        [feat.numpy() for feat in feats],
        truth.gt_labels.numpy(),
        truth.gt_bboxes.numpy(),
        truth.mask_gt.numpy(),
        strides=STRIDES,
        num_classes=4,
        reg_max=reg_max,
        class_loss=class_loss,
        **arrays,
        **criterion.assigner.params._asdict(),
    )
    assert result.loss.item() == pytest.approx(loss, rel=1e-12)
    assert result.loss_items.tolist() == pytest.approx(items, rel=1e-12)
    np.testing.assert_allclose(result.image_sums.numpy(), sums, rtol=1e-12)
    plain = evaluate(criterion, feats, truth, ClassInputs())
    assert torch.equal(plain.image_sums[:, [0, 2, 3]], result.image_sums[:, [0, 2, 3]])
    assert (plain.image_sums[:, 1] != result.image_sums[:, 1]).all()


@pytest.mark.parametrize("implementation", ["sparse", "dense"])  # one of which `auto` takes
@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
def test_gradcheck(implementation: str, class_loss: str) -> None:
    # Boxes do not depend on the factors, so the check is of class logits alone, where nothing is frozen by definition
    # except the assignment.
    feats, truth = sample(case=Case(3, 2, pyramid(32, 32, STRIDES), 4))
    criterion = DetectionLoss(4, STRIDES, 4, implementation=implementation, class_loss=class_loss)
    result = evaluate(criterion, feats, truth, INPUTS["both"])
    assert (result.image_sums[:, 1] != evaluate(criterion, feats, truth, ClassInputs()).image_sums[:, 1]).all()
    assignment = result.assignment
    assert assignment.fg_mask.any()
    criterion.assigner.assign = lambda *_: assignment  # type: ignore[method-assign]
    boxes = [feat[:, :16] for feat in feats]

    def loss(*logits: Tensor) -> Tensor:
        maps = [torch.cat(pair, dim=1) for pair in zip(boxes, logits, strict=True)]
        return evaluate(criterion, maps, truth, INPUTS["both"]).loss

    leaves = [feat[:, 16:].clone().requires_grad_() for feat in feats]
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("implementation", ["sparse", "dense"])
@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
@pytest.mark.parametrize("which", list(INPUTS))
@pytest.mark.parametrize("reg_max", [4, 1])
def test_gradients_without_autograd(implementation: str, class_loss: str, which: str, reg_max: int) -> None:
    feats, truth = sample(reg_max)
    options: dict[str, Any] = {"reg_max": reg_max, "class_loss": class_loss}
    other = {"dense": "sparse", "sparse": "dense"}[implementation]
    want = gradients(DetectionLoss(4, STRIDES, implementation=other, **options), feats, truth, INPUTS[which])
    criterion = DetectionLoss(4, STRIDES, implementation=implementation, **options)
    joined = join_predictions(feats, STRIDES, 4, reg_max)
    result, got = criterion.gradients_from_padded(joined, truth, class_inputs=INPUTS[which])
    assert torch.allclose(result.image_sums, evaluate(criterion, feats, truth, INPUTS[which]).image_sums, rtol=1e-12)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.view(theirs.shape), theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
def test_by_hand(implementation: str, class_loss: str) -> None:
    """Two images of one cell and two classes, all logits 0: p = 1/2, softplus = ln 2, nothing assigned."""
    maps = [torch.zeros(2, 6, 1, 1, dtype=torch.float64)]
    truth = GroundTruth(torch.zeros(2, 0, 1).long(), torch.zeros(2, 0, 4).double(), torch.zeros(2, 0, 1).bool())
    element = math.log(2) * (1 if class_loss == "bce" else 0.75 / 4)
    criterion = DetectionLoss(2, (8,), 1, implementation=implementation, class_loss=class_loss, class_weights=(2, 5))
    weighted = evaluate(criterion, maps, truth, ClassInputs(torch.tensor([[1.0, 1.0], [10.0, 0.0]])))
    assert weighted.image_sums[:, 1].tolist() == pytest.approx([7 * element, 20 * element], rel=1e-14)
    # The centre (4, 4) lies inside the first region, on the edge of the second, and in the third, which is padding.
    regions = torch.tensor([[[3.0, 3, 5, 5]] * 2, [[4.0, 0, 8, 8], [0, 0, 8, 8]]])
    mask = torch.tensor([[[True], [True]], [[True], [False]]])
    ignored = evaluate(criterion, maps, truth, ClassInputs(None, regions, mask))
    assert ignored.image_sums[:, 1].tolist() == pytest.approx([0, 7 * element], rel=1e-14)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_do_not_count_may_be_anything(implementation: str, class_loss: str, value: float) -> None:
    """Also those of foreground anchors whose class has weight 0; nothing is learned of them."""
    feats, truth = sample()
    # The whole second image is ignored; in the first, class 3 has weight 0, which no box has.
    truth.gt_labels[:] = 2
    weights, regions = torch.ones(3, 4), torch.tensor([[[-9.0, -9, -8, -8]], [[-1, -1, 97, 65]], [[-9.0, -9, -8, -8]]])
    weights[0, 3] = 0
    inputs = ClassInputs(weights, regions, torch.ones(3, 1, 1).bool())
    criterion = DetectionLoss(4, STRIDES, 4, implementation=implementation, class_loss=class_loss)
    want, want_gradients = evaluate(criterion, feats, truth, inputs), gradients(criterion, feats, truth, inputs)
    assert want.assignment.fg_mask[0].any()
    y, x = next(place for place in np.ndindex(8, 12) if not want.assignment.fg_mask[1, place[0] * 12 + place[1]])
    feats[0][0, 19] = value
    feats[0][1, 16, y, x] = value  # not the boxes' class, so that the assignment stays
    got, got_gradients = evaluate(criterion, feats, truth, inputs), gradients(criterion, feats, truth, inputs)
    assert torch.equal(got.image_sums, want.image_sums)
    for one, other in zip(got_gradients, want_gradients, strict=True):
        assert torch.equal(one, other)
    assert (got_gradients[0][0, 19] == 0).all()
    if implementation != "auto":
        _, without = criterion.gradients_from_padded(join_predictions(feats, STRIDES, 4, 4), truth, class_inputs=inputs)
        for one, other in zip(without, want_gradients, strict=True):
            torch.testing.assert_close(one.view(other.shape), other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_assigned_class_of_weight_0(implementation: str, class_loss: str, value: float) -> None:
    feats, truth = sample()
    truth.gt_labels[:] = 2
    inputs = ClassInputs(torch.tensor([[1.0, 1, 0, 1]]).expand(3, -1))
    criterion = DetectionLoss(4, STRIDES, 4, implementation=implementation, class_loss=class_loss)
    want = evaluate(criterion, feats, truth, inputs)
    b, a = want.assignment.fg_mask[:, :96].nonzero()[0].tolist()
    criterion.assigner.assign = lambda *_: want.assignment  # type: ignore[method-assign]
    feats[0][b, 18].view(-1)[a] = value
    got = evaluate(criterion, feats, truth, inputs)
    assert torch.equal(got.image_sums, want.image_sums)
    for gradient in gradients(criterion, feats, truth, inputs):
        assert gradient.isfinite().all()
        assert (gradient[:, 18] == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_neutral_factors_change_nothing(implementation: str) -> None:
    feats, truth = sample()
    criterion = DetectionLoss(4, STRIDES, 4, implementation=implementation)
    want = gradients(criterion, feats, truth, ClassInputs())
    nowhere = ClassInputs(torch.ones(3, 4), torch.zeros(3, 2, 4), torch.ones(3, 2, 1).bool())
    for inputs in (nowhere, ClassInputs(None, torch.zeros(3, 0, 4), torch.zeros(3, 0, 1).bool())):
        for one, other in zip(gradients(criterion, feats, truth, inputs), want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sums_of_parts_make_the_loss_of_the_whole(implementation: str) -> None:
    feats, truth = sample()
    criterion = DetectionLoss(4, STRIDES, 4, implementation=implementation)
    whole = evaluate(criterion, feats, truth, INPUTS["both"]).image_sums
    for image in range(3):
        part = slice(image, image + 1)
        own = ClassInputs(WEIGHTS[part], REGIONS[part].double(), MASK[part])
        alone = evaluate(criterion, [feat[part] for feat in feats], GroundTruth(*(t[part] for t in truth)), own)
        torch.testing.assert_close(alone.image_sums[0], whole[image], rtol=1e-13, atol=0)


@pytest.mark.parametrize("convert", [lambda t: t, lambda t: t.numpy(), lambda t: t.tolist()])
def test_a_ragged_batch(convert: Callable[[Tensor], Any]) -> None:
    feats, truth = sample()
    size = torch.tensor([96.0, 64, 96, 64])
    boxes = REGIONS.double()[MASK.squeeze(2)]
    normalised = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1) / size
    own = {"class_weights": WEIGHTS, "ignore_idx": torch.tensor([0, 0, 1, 2]), "ignore_bboxes": normalised}
    batch = ragged_batch(truth, (64, 96)) | {name: convert(value) for name, value in own.items()}
    criterion = DetectionLoss(4, STRIDES, 4)
    want = evaluate(criterion, feats, truth, INPUTS["both"])
    torch.testing.assert_close(criterion.evaluate(feats, batch).image_sums, want.image_sums, rtol=1e-6, atol=0)
    for_all = ragged_batch(truth, (64, 96)) | {"class_weights": [1, 2, 0, 1], "ignore_idx": None}
    constant = DetectionLoss(4, STRIDES, 4, class_weights=np.array([1.0, 2, 0, 1]))
    got = constant.evaluate(feats, ragged_batch(truth, (64, 96))).image_sums
    assert torch.equal(criterion.evaluate(feats, for_all).image_sums, got)
    empty = {"ignore_idx": torch.zeros(0), "ignore_bboxes": torch.zeros(0, 4)}
    plain = criterion.evaluate(feats, ragged_batch(truth, (64, 96)))
    assert torch.equal(criterion.evaluate(feats, ragged_batch(truth, (64, 96)) | empty).image_sums, plain.image_sums)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"class_weights": torch.ones(3)}, r"class_weights has shape \(3,\); give \(4,\).* or \(3, 4\)"),
        ({"class_weights": torch.ones(2, 4)}, r"class_weights has shape \(2, 4\)"),
        ({"class_weights": [1.0, -1, 1, 1]}, r"class_weights\[1\] is -1.0; give finite numbers, 0 or more"),
        ({"class_weights": WEIGHTS / 0}, r"class_weights\[0, 0\] is inf"),
        ({"class_weights": torch.ones(4).bool()}, "class_weights has dtype bool"),
        ({"ignore_idx": [0]}, "batch has ignore_idx alone"),
        ({"ignore_idx": [0], "ignore_bboxes": [[0.5, 0.5, 1.0]]}, r"ignore_bboxes has shape \(1, 3\)"),
        ({"ignore_idx": [3], "ignore_bboxes": [[0.5] * 4]}, r"ignore_idx\[0\] is 3, and the number of images is 3"),
        ({"ignore_idx": [0], "ignore_bboxes": [[30.0] * 4]}, r"ignore_bboxes\[0\] is .* these are pixels"),
        ({"ignore_idx": [[0, 1]], "ignore_bboxes": [[0.5] * 4]}, r"ignore_idx has shape \(1, 2\)"),
    ],
)
def test_what_is_refused(own: dict[str, Any], message: str) -> None:
    feats, truth = sample()
    with pytest.raises(ValueError, match=message):
        DetectionLoss(4, STRIDES, 4)(feats, ragged_batch(truth, (64, 96)) | own)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 1.0), "class_weights is 2 numbers, expected 4 numbers, one for each class"),
        (2.0, "class_weights is no list, expected 4 numbers"),
        ((1, 1, -1, 1), r"class_weights\[2\] is -1, expected a finite number, 0 or more"),
        (torch.tensor([1, math.nan, 1, 1]), r"class_weights\[1\] is nan, expected a finite number"),
    ],
)
def test_constants_that_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionLoss(4, STRIDES, class_weights=weights)


@pytest.mark.parametrize("implementation", ["auto", "dense"])
def test_vmap(implementation: str) -> None:
    feats, truth = sample()
    batch = ragged_batch(truth, (64, 96)) | {"class_weights": WEIGHTS, "ignore_idx": [0], "ignore_bboxes": [[0.5] * 4]}
    criterion = DetectionLoss(4, STRIDES, 4, implementation=implementation)

    def loss(*maps: Tensor) -> Tensor:
        total: Tensor = criterion(list(maps), batch)[0]
        return total

    several = tuple(torch.stack((feat, feat * 0.5)) for feat in feats)
    got = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*several)
    for place in range(2):
        leaves = [feat[place].clone().requires_grad_() for feat in several]
        for one, other in zip(got, torch.autograd.grad(loss(*leaves), leaves), strict=True):
            torch.testing.assert_close(one[place], other, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_forward_mode(implementation: str) -> None:
    feats, truth = sample()
    criterion = DetectionLoss(4, STRIDES, 4, implementation=implementation)

    def loss(*maps: Tensor) -> Tensor:
        return evaluate(criterion, list(maps), truth, INPUTS["both"]).loss

    got = torch.func.jvp(loss, tuple(feats), tuple(torch.ones_like(feat) for feat in feats))[1]
    want = torch.stack([gradient.sum() for gradient in gradients(criterion, feats, truth, INPUTS["both"])]).sum()
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_lists_filled_up_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the foreground's list is filled up with background, some of it ignored."""
    feats, truth = sample()
    criterion = DetectionLoss(4, STRIDES, 4, implementation="sparse")
    joined = join_predictions(feats, STRIDES, 4, 4)
    want, want_gradients = criterion.gradients_from_padded(joined, truth, class_inputs=INPUTS["both"])
    by_autograd = gradients(criterion, feats, truth, INPUTS["both"])
    monkeypatch.setattr(criterion, "_max_foreground", lambda _: 10**6)
    got, got_gradients = criterion.gradients_from_padded(joined, truth, class_inputs=INPUTS["both"])
    assert torch.equal(got.image_sums, want.image_sums)
    pairs = (got_gradients, want_gradients), (gradients(criterion, feats, truth, INPUTS["both"]), by_autograd)
    for several in pairs:
        for one, other in zip(*several, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=0)


def test_chunks_of_images_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    feats, truth = sample()
    criterion = DetectionLoss(4, STRIDES, 4)
    want = evaluate(criterion, feats, truth, INPUTS["both"])
    monkeypatch.setattr(chunks, "ELEMENTS_PER_CHUNK", 1)
    monkeypatch.setattr(yolo_loss.class_factors, "PAIRS_PER_CHUNK", 1)
    got = evaluate(criterion, feats, truth, INPUTS["both"])
    torch.testing.assert_close(got.image_sums, want.image_sums, rtol=1e-13, atol=0)


@pytest.mark.parametrize("eps", [1e-9, 2.0])
def test_a_centre_on_the_edge_is_outside(eps: float) -> None:
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0]])
    boxes = torch.tensor([[[4.0, 0.0, 13.5, 8.0], [math.nan] * 4]])
    got = anchors_inside(points, boxes, torch.ones(1, 2, 1).bool(), eps)
    assert got.tolist() == [[False, eps < 1, False]]

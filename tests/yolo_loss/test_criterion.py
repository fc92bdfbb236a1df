"""The loss beside the slow oracle, its gradients and its properties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

import yolo_loss.boxes
from tests import loss_oracle
from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_loss_inputs
from yolo_loss import Assignment, DetectionLoss, Gains, GroundTruth, loss_from_sums
from yolo_loss.assigner import IMPLEMENTATIONS
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
OPTIONS: dict[str, Any] = {}
CASE = Case(2, 5, pyramid(64, 96, STRIDES), 3)
Inputs = tuple[list[Tensor], GroundTruth]


def sample(case: Case = CASE, reg_max: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
    feats, *rest = sample_loss_inputs(case, STRIDES, reg_max, seed)
    labels, boxes, mask = rest
    return [feat.to(dtype) for feat in feats], GroundTruth(labels, boxes.to(dtype), mask)


def evaluate(criterion: DetectionLoss, inputs: Inputs) -> Any:
    feats, ground_truth = inputs
    joined = join_predictions(feats, criterion.strides, criterion.num_classes, criterion.reg_max)
    return criterion.from_padded(joined, ground_truth)


def oracle(inputs: Inputs, criterion: DetectionLoss) -> tuple[float, list[float], Any]:
    feats, ground_truth = inputs
    return loss_oracle.loss(
        [feat.double().numpy() for feat in feats],
        *(tensor.numpy() for tensor in ground_truth),
        strides=criterion.strides,
        num_classes=criterion.num_classes,
        reg_max=criterion.reg_max,
        gains=tuple(criterion.gains),
        class_loss=criterion.class_loss,
        **criterion.assigner.params._asdict(),
    )


@pytest.fixture(autouse=True, params=list(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything holds for each implementation."""
    monkeypatch.setitem(OPTIONS, "implementation", request.param)
    return str(request.param)


@pytest.mark.parametrize(
    ("options", "case", "reg_max"),
    [
        ({}, CASE, 16),
        ({"class_loss": "varifocal"}, CASE, 16),
        ({"preset": "ultralytics-8.4", "topk": 4}, CASE, 16),
        ({"gains": Gains(1.0, 2.0, 3.0), "topk2": 1}, CASE, 8),
        ({}, CASE, 1),
        ({}, CASE._replace(slots=0), 16),
        ({"class_loss": "varifocal"}, CASE._replace(slots=0), 1),
        ({}, CASE._replace(num_classes=1, slots=20), 16),
        ({}, Case(1, 3, ((1, 2), (1, 1), (1, 1)), 3), 16),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_oracle(options: dict[str, Any], case: Case, reg_max: int, dtype: torch.dtype) -> None:
    inputs = sample(case, reg_max, dtype=dtype)
    criterion = DetectionLoss(case.num_classes, STRIDES, reg_max, **OPTIONS, **options)
    result = evaluate(criterion, inputs)
    loss, items, sums = oracle(inputs, criterion)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert result.loss.item() == pytest.approx(loss, rel=tolerance)
    assert result.loss_items.tolist() == pytest.approx(items, rel=tolerance, abs=tolerance)
    np.testing.assert_allclose(result.image_sums.numpy(), sums, rtol=tolerance, atol=tolerance)


def test_exported_graph_agrees_with_the_oracle(artifacts_dir: Path) -> None:
    inputs = sample(dtype=torch.float32, seed=1)
    criterion = DetectionLoss(3, STRIDES, **OPTIONS)
    session = ort.InferenceSession(artifacts_dir / "loss.onnx", providers=["CPUExecutionProvider"])
    tensors = [*inputs[0], *inputs[1]]
    feed = {spec.name: tensor.numpy() for spec, tensor in zip(session.get_inputs(), tensors, strict=True)}
    got_loss, got_items, got_sums = session.run(["loss", "loss_items", "image_sums"], feed)
    loss, items, sums = oracle(inputs, criterion)
    assert float(got_loss) == pytest.approx(loss, rel=1e-5)
    assert got_items.tolist() == pytest.approx(items, rel=1e-5)
    np.testing.assert_allclose(got_sums, sums, rtol=1e-5)


def test_a_ragged_batch_gives_the_same_as_padded_ground_truth() -> None:
    feats, ground_truth = sample(seed=2)
    criterion = DetectionLoss(3, STRIDES, **OPTIONS)
    padded = evaluate(criterion, (feats, ground_truth))
    loss, items = criterion(feats, ragged_batch(ground_truth, (64, 96)))
    assert loss.item() == pytest.approx(padded.loss.item(), rel=1e-9)
    assert items.tolist() == pytest.approx(padded.loss_items.tolist(), rel=1e-9)
    assert not items.requires_grad


@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
@pytest.mark.parametrize("reg_max", [4, 1])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, class_loss: str, reg_max: int) -> None:
    # Two things carry no gradient by definition, the assignment and CIoU's trade-off: both are frozen at the point
    # where the derivative is taken, so that the finite differences see the same function as autograd.
    case = Case(1, 12, ((4, 4), (2, 2), (1, 1)), 2)
    feats, ground_truth = sample(case, reg_max, seed=0)
    criterion = DetectionLoss(2, STRIDES, reg_max, class_loss=class_loss, **OPTIONS)
    frozen: list[Tensor] = []
    trade_off = yolo_loss.boxes.trade_off

    def remember(aspect: Tensor, iou: Tensor, eps: float) -> Tensor:
        frozen.append(trade_off(aspect, iou, eps))
        return frozen[-1]

    monkeypatch.setattr(yolo_loss.boxes, "trade_off", remember)
    assignment: Assignment = evaluate(criterion, (feats, ground_truth)).assignment
    assert assignment.fg_mask.sum() >= 3
    monkeypatch.setattr(yolo_loss.boxes, "trade_off", lambda *_: frozen[-1])
    monkeypatch.setattr(criterion.assigner, "assign", lambda *_: assignment)

    def loss(*levels: Tensor) -> Tensor:
        total: Tensor = evaluate(criterion, (list(levels), ground_truth)).loss
        return total

    leaves = [feat.requires_grad_() for feat in feats]
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)


def test_float32_gradients_are_those_of_float64() -> None:
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        feats, ground_truth = sample(seed=5, dtype=dtype)
        feats = [feat.requires_grad_() for feat in feats]
        evaluate(DetectionLoss(3, STRIDES, **OPTIONS), (feats, ground_truth)).loss.backward()
        gradients[dtype] = torch.cat([feat.grad.flatten().double() for feat in feats if feat.grad is not None])
    difference = (gradients[torch.float32] - gradients[torch.float64]).norm() / gradients[torch.float64].norm()
    assert difference < 1e-5


@pytest.mark.parametrize("slots", [0, 3])
def test_without_foreground_gradients_are_finite(slots: int) -> None:
    feats, ground_truth = sample(CASE._replace(slots=slots))
    feats = [feat.requires_grad_() for feat in feats]
    nothing = ground_truth._replace(mask_gt=torch.zeros_like(ground_truth.mask_gt))
    result = evaluate(DetectionLoss(3, STRIDES, **OPTIONS), (feats, nothing))
    result.loss.backward()
    box, cls, dfl = result.loss_items.tolist()
    assert (box, dfl) == (0.0, 0.0)
    assert cls > 0
    for feat in feats:
        assert feat.grad is not None
        assert (feat.grad[:, :64] == 0).all()
        assert feat.grad[:, 64:].isfinite().all()


def test_background_boxes_that_are_not_finite_do_no_harm() -> None:
    feats, ground_truth = sample(seed=6)
    criterion = DetectionLoss(3, STRIDES, **OPTIONS)
    clean = evaluate(criterion, (feats, ground_truth))
    height, width = CASE.grids[0]
    background = ~clean.assignment.fg_mask[:, : height * width].reshape(2, 1, height, width)
    spoiled = torch.cat((feats[0][:, :64].masked_fill(background, float("nan")), feats[0][:, 64:]), dim=1)
    result = evaluate(criterion, ([spoiled, *feats[1:]], ground_truth))
    assert result.loss.item() == pytest.approx(clean.loss.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps(dtype: torch.dtype) -> None:
    feats, ground_truth = sample(seed=7, dtype=torch.float32)
    halves = [feat.to(dtype).requires_grad_() for feat in feats]
    criterion = DetectionLoss(3, STRIDES, **OPTIONS)
    result = evaluate(criterion, (halves, ground_truth))
    assert result.loss.dtype == torch.float32
    want = evaluate(criterion, ([half.detach().float() for half in halves], ground_truth))
    assert result.loss.item() == want.loss.item()
    result.loss.backward()
    for half in halves:
        assert half.grad is not None
        assert half.grad.dtype == dtype
        assert half.grad.isfinite().all()


def test_mixed_precision_regions_change_nothing() -> None:
    feats, ground_truth = sample(seed=11, dtype=torch.float32)
    feats = [feat.requires_grad_() for feat in feats]
    criterion, batch = DetectionLoss(3, STRIDES, **OPTIONS), ragged_batch(ground_truth, (64, 96))
    want = criterion(feats, batch)[0].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = criterion(feats, batch)
    loss.backward()
    assert loss.item() == want
    assert all(feat.grad is not None and feat.grad.isfinite().all() for feat in feats)


def test_sums_of_parts_make_the_loss_of_the_whole() -> None:
    feats, ground_truth = sample(Case(4, 6, CASE.grids, 3), seed=8)
    criterion = DetectionLoss(3, STRIDES, **OPTIONS)
    whole = evaluate(criterion, (feats, ground_truth))
    parts = []
    for images in (slice(0, 1), slice(1, 4)):
        part = GroundTruth(*(tensor[images] for tensor in ground_truth))
        parts.append(evaluate(criterion, ([feat[images] for feat in feats], part)).image_sums)
    loss, items = loss_from_sums(torch.cat(parts), criterion.gains)
    assert loss.item() == pytest.approx(whole.loss.item(), rel=1e-12)
    assert items.tolist() == pytest.approx(whole.loss_items.tolist(), rel=1e-12)


def test_forms_of_predictions_are_equal() -> None:
    feats, ground_truth = sample(seed=9)
    criterion = DetectionLoss(3, STRIDES, **OPTIONS)
    batch = ragged_batch(ground_truth, (64, 96))
    joined = torch.cat([feat.flatten(2) for feat in feats], dim=2)
    as_dict = {"boxes": joined[:, :64], "scores": joined[:, 64:], "feats": [feat[:, :5] for feat in feats]}
    decoded = torch.zeros(2, 7, joined.shape[2])
    want = criterion(feats, batch)[0].item()
    for form in (tuple(feats), (decoded, feats), as_dict, (decoded, as_dict)):
        assert criterion(form, batch)[0].item() == want


def test_arguments_are_left_alone() -> None:
    feats, ground_truth = sample(seed=10)
    batch = ragged_batch(ground_truth, (64, 96))
    tensors = [*feats, *batch.values()]
    copies = [tensor.clone() for tensor in tensors]
    DetectionLoss(3, STRIDES, **OPTIONS)(feats, batch)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize(
    "layout",
    [
        lambda feat: feat.contiguous(memory_format=torch.channels_last),
        lambda feat: torch.cat((feat, feat), dim=1)[:, : feat.shape[1]],
        lambda feat: torch.cat((feat, feat), dim=3)[..., : feat.shape[3]],
    ],
    ids=["channels last", "part of the channels", "part of the columns"],
)
def test_layout_of_the_maps_is_free(layout: Callable[[Tensor], Tensor]) -> None:
    feats, *rest = sample_loss_inputs(CASE, STRIDES, 16, seed=3)
    criterion = DetectionLoss(CASE.num_classes, STRIDES, **OPTIONS)
    height, width = (int(side * STRIDES[0]) for side in CASE.grids[0])
    batch = ragged_batch(GroundTruth(*rest), (height, width))
    results = []
    for maps in (feats, [layout(feat) for feat in feats]):
        leaves = [feat.detach().requires_grad_() for feat in maps]
        loss, items = criterion(leaves, batch)
        loss.backward()
        results.append((loss.detach(), items, [leaf.grad for leaf in leaves]))
    (loss, items, gradients), (other_loss, other_items, other_gradients) = results
    torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(other_items, items, rtol=1e-6, atol=0)
    for one, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)

"""A served loss as a torch criterion, against the criterion in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.serve.conftest import Live, loss_inputs
from yolo_assigner.serve.client import AssignerClient, ServerError
from yolo_loss import DetectionLoss

BATCH: dict[str, Any] = {
    "batch_idx": torch.tensor([1, 0, 1]),
    "cls": torch.tensor([[2.0], [0.0], [1.0]]),
    "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.4, 0.4], [0.6, 0.5, 0.7, 0.9]]),
}


def leaves(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Maps that need a gradient."""
    arrays = loss_inputs()
    return [torch.from_numpy(arrays[f"feat_{level}"]).to(dtype).requires_grad_() for level in range(3)]


def gradients_of(loss: Tensor, feats: list[Tensor], factor: float = 1.0) -> list[Tensor]:
    """Compute the gradients by autograd."""
    return list(torch.autograd.grad(loss * factor, feats, retain_graph=True))


@pytest.mark.parametrize("factor", [1.0, -2.5])
def test_loss_and_gradients_are_those_of_the_criterion(live: Live, factor: float) -> None:
    ours, theirs = leaves(), leaves()
    with AssignerClient(live.url) as client:
        loss = client.criterion()(ours, BATCH)
    expected, _ = DetectionLoss(num_classes=3)(theirs, BATCH)
    torch.testing.assert_close(loss, expected)
    wanted = gradients_of(expected, theirs, factor)
    for got, want in zip(gradients_of(loss, ours, factor), wanted, strict=True):
        assert want.abs().max() > 0
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_backward_reaches_the_layers_before_the_maps(live: Live) -> None:
    """With a layer before the maps and another loss beside this one."""
    scale = torch.tensor(1.5, requires_grad=True)
    with AssignerClient(live.url) as client:
        loss = client.criterion()([feat.detach() * scale for feat in leaves()], BATCH) + scale
    loss.backward()
    other = torch.tensor(1.5, requires_grad=True)
    (DetectionLoss(num_classes=3)([feat.detach() * other for feat in leaves()], BATCH)[0] + other).backward()
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_parts_are_detached(live: Live) -> None:
    feats = leaves()
    with AssignerClient(live.url) as client:
        loss, items, sums = client.criterion().evaluate(feats, BATCH)
    expected = DetectionLoss(num_classes=3).evaluate(feats, BATCH)
    assert loss.requires_grad
    assert not items.requires_grad
    assert not sums.requires_grad
    torch.testing.assert_close(items, expected.loss_items)
    torch.testing.assert_close(sums, expected.image_sums.detach())


def test_half_precision_maps_get_half_precision_gradients(live: Live) -> None:
    feats = leaves(torch.bfloat16)
    with AssignerClient(live.url) as client:
        loss = client.criterion()(feats, BATCH)
    rounded = [feat.detach().float().requires_grad_() for feat in feats]
    expected = DetectionLoss(num_classes=3)(rounded, BATCH)[0]
    assert loss.dtype == torch.float32
    for got, want in zip(gradients_of(loss, feats), gradients_of(expected, rounded), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, want.bfloat16(), rtol=1e-2, atol=1e-6)


def test_a_scaler_keeps_small_gradients_of_half_precision(live: Live) -> None:
    """Gradients are scaled before narrowing: 2^16 lifts what float16 would round to zero."""
    feats = [(feat.detach() - 14.0).half().requires_grad_() for feat in leaves()]
    with AssignerClient(live.url) as client:
        loss = client.criterion()(feats, BATCH | {key: value[:0] for key, value in BATCH.items()})
    plain, lifted = gradients_of(loss, feats), gradients_of(loss, feats, 2.0**16)
    lost = [(small == 0) & (large != 0) for small, large in zip(plain, lifted, strict=True)]
    assert any(part.any() for part in lost)


def test_only_maps_that_need_a_gradient_get_one(live: Live) -> None:
    first, *others = leaves()
    feats = [first, *(feat.detach() for feat in others)]
    with AssignerClient(live.url) as client:
        loss = client.criterion()(feats, BATCH)
    loss.backward()
    assert first.grad is not None
    assert all(feat.grad is None for feat in feats[1:])


def test_validation_fetches_no_gradients(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    infer = AssignerClient.infer

    def listen(self: AssignerClient, model: str, arrays: Any, outputs: Any) -> Any:
        asked.append((model, *outputs))
        return infer(self, model, arrays, outputs)

    monkeypatch.setattr(AssignerClient, "infer", listen)
    with AssignerClient(live.url) as client, torch.no_grad():
        loss = client.criterion()(leaves(), BATCH)
    assert not loss.requires_grad
    assert asked == [("loss_grad", "loss", "loss_items", "image_sums")]


def test_a_refusal_comes_before_the_backward_pass(live: Live) -> None:
    with AssignerClient(live.url) as client:
        with pytest.raises(ServerError, match="no model 'other'"):
            client.criterion("other")(leaves(), BATCH)
        with pytest.raises(ServerError, match="has no output 'grad_feat_0'"):
            client.criterion("loss")(leaves(), BATCH)
        assert client.criterion()(leaves(), BATCH).isfinite()

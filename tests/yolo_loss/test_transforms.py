"""torch.func, forward mode and second derivatives, beside plain autograd and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from yolo_loss import DetectionLoss, GroundTruth, TaskAlignedAssigner

STRIDES = (8.0, 16.0, 32.0)
# So many pairs that `auto` is sparse.
CASE = Case(2, 16, pyramid(160, 160, STRIDES), 3)
IMPLEMENTATIONS = ["auto", "sparse", "dense"]
Maps = tuple[Tensor, ...]
# torch's own, inside forward mode and vmap.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def sample() -> tuple[Maps, Maps, dict[str, Tensor]]:
    """Maps, a direction, and boxes."""
    feats, *truth = sample_loss_inputs(CASE, STRIDES, 16, seed=1)
    generator = torch.Generator().manual_seed(2)
    directions = tuple(torch.randn(feat.shape, generator=generator, dtype=torch.float64) for feat in feats)
    batch = ragged_batch(GroundTruth(*truth), (160, 160))
    return tuple(feat.double() for feat in feats), directions, batch


def loss_of(implementation: str, batch: dict[str, Tensor], class_loss: str = "bce") -> Callable[..., Tensor]:
    criterion = DetectionLoss(3, STRIDES, implementation=implementation, class_loss=class_loss)
    return lambda *maps: criterion(list(maps), batch)[0]


def product(gradients: Maps, directions: Maps) -> Tensor:
    return torch.stack([(one * other).sum() for one, other in zip(gradients, directions, strict=True)]).sum()


def plain_gradients(loss: Callable[..., Tensor], maps: Maps) -> Maps:
    leaves = [feat.clone().requires_grad_() for feat in maps]
    return torch.autograd.grad(loss(*leaves), leaves)


@pytest.mark.parametrize("class_loss", ["bce", "varifocal"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_forward_mode(implementation: str, class_loss: str) -> None:
    maps, directions, batch = sample()
    loss = loss_of(implementation, batch, class_loss)
    want = product(plain_gradients(loss, maps), directions)
    by_func = torch.func.jvp(loss, maps, directions)[1]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(feat, direction) for feat, direction in zip(maps, directions, strict=True)]
        by_duals = forward_ad.unpack_dual(loss(*duals)).tangent
    assert by_duals is not None
    torch.testing.assert_close(by_func, want, rtol=1e-10, atol=0)
    torch.testing.assert_close(by_duals, want, rtol=1e-10, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_functional_gradient(implementation: str) -> None:
    maps, _, batch = sample()
    loss = loss_of(implementation, batch)
    for one, other in zip(torch.func.grad(loss, argnums=(0, 1, 2))(*maps), plain_gradients(loss, maps), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_second_derivatives(implementation: str) -> None:
    """In two ways; `test_criterion.test_gradcheck` has them beside finite differences."""
    maps, directions, batch = sample()
    loss = loss_of(implementation, batch)
    leaves = [feat.clone().requires_grad_() for feat in maps]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    for one, other in zip(first, plain_gradients(loss, maps), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
    second = torch.autograd.grad(product(first, directions), leaves)
    by_func = torch.func.jvp(torch.func.grad(loss, argnums=(0, 1, 2)), maps, directions)[1]
    for one, other in zip(second, by_func, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


def test_second_derivatives_of_joined_predictions() -> None:
    """Boxes and scores that are two tensors, one of which needs no gradient."""
    maps, _, batch = sample()
    boxes = torch.cat([feat[:, :64].flatten(2) for feat in maps], dim=2)
    scores = torch.cat([feat[:, 64:].flatten(2) for feat in maps], dim=2).requires_grad_()
    predictions = {"boxes": boxes, "scores": scores, "feats": list(maps)}
    loss, _ = DetectionLoss(3, STRIDES)(predictions, batch)
    (first,) = torch.autograd.grad(loss, scores, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), scores)
    want, _ = DetectionLoss(3, STRIDES, implementation="dense")(predictions, batch)
    (want_first,) = torch.autograd.grad(want, scores, create_graph=True)
    torch.testing.assert_close(first, want_first)
    torch.testing.assert_close(second, torch.autograd.grad(want_first.sum(), scores)[0])


@pytest.mark.parametrize("implementation", ["auto", "dense"])
def test_vmap(implementation: str) -> None:
    maps, _, batch = sample()
    loss = loss_of(implementation, batch)
    several = tuple(torch.stack((feat, feat + 0.1, feat * 0.5)) for feat in maps)
    values = torch.func.vmap(loss)(*several)
    gradients = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*several)
    for place in range(3):
        own = tuple(feat[place] for feat in several)
        torch.testing.assert_close(values[place], loss(*own))
        for one, other in zip(gradients, plain_gradients(loss, own), strict=True):
            torch.testing.assert_close(one[place], other, rtol=1e-9, atol=1e-13)


def test_vmap_of_lists_is_refused() -> None:
    maps, _, batch = sample()
    with pytest.raises(
        ValueError, match=r"implementation is 'sparse', which torch.func.vmap, .* choose implementation='dense'"
    ):
        torch.func.vmap(loss_of("sparse", batch))(*(torch.stack((feat, feat)) for feat in maps))


def test_compiled_kernels_step_back_for_transforms() -> None:
    maps, directions, batch = sample()
    criterion = DetectionLoss(3, STRIDES, compile_kernels=True)
    got = torch.func.jvp(lambda *feats: criterion(list(feats), batch)[0], maps, directions)[1]
    want = product(plain_gradients(loss_of("auto", batch), maps), directions)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_several_gradients_at_once(implementation: str) -> None:
    maps, _, batch = sample()
    leaves = [feat.clone().requires_grad_() for feat in maps]
    loss = loss_of(implementation, batch)(*leaves)
    scales = torch.tensor([1.0, -2.0], dtype=torch.float64)
    both = torch.autograd.grad(loss, leaves, scales, is_grads_batched=True, retain_graph=True)
    for several, one in zip(both, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(several, torch.stack((one, -2 * one)), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_maps_of_images_that_share_their_memory(implementation: str) -> None:
    maps, _, batch = sample()
    shared = tuple(feat[:1].expand(2, -1, -1, -1) for feat in maps)
    loss = loss_of(implementation, batch)
    got = torch.func.grad(loss, argnums=(0, 1, 2))(*shared)
    for one, other in zip(got, plain_gradients(loss, tuple(feat.contiguous() for feat in shared)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("implementation", ["auto", "dense"])
def test_vmap_of_the_assigner(implementation: str) -> None:
    scores, *rest = sample_assigner_inputs(CASE, STRIDES, seed=0)
    assigner = TaskAlignedAssigner(10, 3, 0.5, 6.0, implementation=implementation)
    several = torch.stack((scores, scores.flip(0), scores * 0.5))
    results = torch.func.vmap(lambda own: tuple(assigner(own, *rest)))(several)
    for place in range(3):
        for one, other in zip(results, assigner(several[place], *rest), strict=True):
            assert torch.equal(one[place], other)

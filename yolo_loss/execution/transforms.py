"""Detection of torch's transforms around the loss: ``torch.func``, forward mode, and batched gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from yolo_loss.structures import Level, Predictions


def transformed(tensors: Iterable[Tensor]) -> bool:
    """Whether a transform of ``torch.func`` is active, or a tensor has a forward-mode tangent.

    Neither shows in ``requires_grad``, and both need operations that have derivatives of their own.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    # Without a level no tensor has a tangent, and asking each takes a good part of a small batch's time.
    within_level = forward_ad._current_level >= 0
    return within_level and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def vectorized() -> bool:
    """Whether ``torch.func.vmap`` is active, by itself or under ``jacfwd``, ``jacrev`` or ``hessian``."""
    if not torch._C._are_functorch_transforms_active():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)


def batched(gradient: Tensor) -> bool:
    """Whether a gradient holds several at once, as with ``is_grads_batched=True``."""
    return vectorized() or torch._C._functorch.is_legacy_batchedtensor(gradient)


def detached(predictions: Predictions) -> Predictions:
    """Detach predictions from backward and forward mode; a level whose two tensors are one keeps them so."""
    levels = []
    for distri_source, scores_source in predictions.levels:
        distri = distri_source.detach()
        levels.append(Level(distri, distri if scores_source is distri_source else scores_source.detach()))
    return predictions._replace(levels=tuple(levels))

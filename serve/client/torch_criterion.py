"""A served loss as a torch criterion; the only module of the client that needs torch.

One reply has the loss and its gradients; the backward pass sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_assigner.serve.detection.results import LossAndGradients, LossResult


class LossClient(Protocol):
    """The methods of :class:`yolo_assigner.serve.client.AssignerClient` that a criterion calls."""

    def loss(self, feats: Sequence[Any], batch: Mapping[str, Any], *, model: str) -> LossResult:
        """Compute the loss."""

    def loss_and_gradients(self, feats: Sequence[Any], batch: Mapping[str, Any], *, model: str) -> LossAndGradients:
        """Compute the loss and its gradients."""


class RemoteLoss(NamedTuple):
    """The reply of a server, as tensors on the maps' device.

    Attributes:
        loss: () float32, the sum of the terms times B; supports ``backward``.
        loss_items: (3,) float32: box, cls, dfl with their gains, before times B; detached.
        image_sums: (B, 4) float32, without gains, not normalised: box, cls, dfl and target-score sums; detached.
    """

    loss: Tensor
    loss_items: Tensor
    image_sums: Tensor


class RemoteDetectionLoss:
    """The detection loss of a server, used like a local one: ``criterion(feats, batch).backward()``.

    Args:
        client: The connection, which one thread may use.
        model: Name of a served model of kind ``loss_grad``.
    """

    def __init__(self, client: LossClient, model: str = "loss_grad") -> None:
        self._client = client
        self._model = model

    def __call__(self, feats: Sequence[Tensor], batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss, () float32.

        Args:
            feats: One map (B, 4R + C, H_i, W_i) per stride, of any floating type, on any device.
            batch: ``batch_idx`` (T,), ``cls`` (T,), ``bboxes`` (T, 4) normalised centre x, centre y, width, height.

        Raises:
            ValueError: The batch is not regular, or a box belongs to no image.
            ServerError: The server refused, or could not be reached.
        """
        return self.evaluate(feats, batch).loss

    def evaluate(self, feats: Sequence[Tensor], batch: Mapping[str, Any]) -> RemoteLoss:
        """Compute the loss and its parts. Gradients are fetched only where a map needs one."""
        if torch.is_grad_enabled() and any(feat.requires_grad for feat in feats):
            # The autograd function returns the parts too: they come with the same reply.
            loss, items, sums = _Fetched.apply(self, batch, *feats)  # type: ignore[no-untyped-call]
            return RemoteLoss(loss, items, sums)
        result = self._client.loss(feats, batch, model=self._model)
        return RemoteLoss(*(_tensor(part, feats[0].device) for part in result[: len(RemoteLoss._fields)]))

    def fetch(self, feats: Sequence[Tensor], batch: Mapping[str, Any]) -> tuple[RemoteLoss, list[Any]]:
        """Fetch the parts as tensors, and the gradients as float32 arrays on the host."""
        result, gradients = self._client.loss_and_gradients(feats, batch, model=self._model)
        parts = (_tensor(part, feats[0].device) for part in (result.loss, result.loss_items, result.image_sums))
        return RemoteLoss(*parts), gradients


class _Fetched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, criterion: RemoteDetectionLoss, batch: Mapping[str, Any], *feats: Tensor) -> Any:
        parts, ctx.gradients = criterion.fetch(feats, batch)
        ctx.targets = [(feat.device, feat.dtype) for feat in feats]
        ctx.mark_non_differentiable(parts.loss_items, parts.image_sums)
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> Any:
        factor = float(grad_output)
        # Scaled before narrowing: a gradient scaler's factor keeps small gradients above 0 in half precision.
        gradients = (
            _tensor(gradient * factor, device).to(dtype) if needed else None
            for gradient, (device, dtype), needed in zip(
                ctx.gradients, ctx.targets, ctx.needs_input_grad[2:], strict=True
            )
        )
        return None, None, *gradients


def _tensor(array: Any, device: torch.device) -> Tensor:
    # The reply lies in read-only memory, which torch does not accept.
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)

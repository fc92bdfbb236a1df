"""The loss of heads with a one-to-many and a one-to-one part (YOLOv10, arXiv 2405.14458), which need no NMS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from yolo_loss.checks import Array, describe
from yolo_loss.criterion import DetectionLoss
from yolo_loss.execution.compilation import uncompiled
from yolo_loss.option_checks import whole_number
from yolo_loss.predictions import RawOutput
from yolo_loss.structures import LossResult

PARTS = ("one2many", "one2one")
# Share of the one-to-many loss in the first epoch and in the last.
FIRST_SHARE, LAST_SHARE = 0.8, 0.1
# Candidates per ground truth in the one-to-one part, and how many of them each keeps.
TOPK_ONE2ONE, TOPK2_ONE2ONE = 7, 1


class EndToEndResult(NamedTuple):
    """The loss of both parts together, and of each.

    Attributes:
        loss: () the weighted sum of both losses.
        loss_items: (3,) of the one-to-one part, in the order of ``EndToEndLoss.loss_names``; detached.
        one2many: Result of the one-to-many part.
        one2one: Result of the one-to-one part.
    """

    loss: Tensor
    loss_items: Tensor
    one2many: LossResult
    one2one: LossResult


class EndToEndLoss(nn.Module):
    """Weighted sum of a one-to-many and a one-to-one loss, whose weights move from the first to the second.

    The one-to-many loss has the share a, the one-to-one loss 1 - a: a is 0.8 at first, and falls in equal steps to 0.1
    in the last epoch. Call ``update`` after each epoch.

    Attributes:
        one2many: The loss of the one-to-many part, a ``DetectionLoss``.
        one2one: The loss of the one-to-one part.
        epochs: E, of the whole training.
        updates: Epochs that are over; set it to resume a training.
    """

    def __init__(
        self,
        num_classes: int = 80,
        strides: Sequence[float] | Tensor | Array = (8, 16, 32),
        reg_max: int = 16,
        *,
        epochs: int,
        topk: int = 10,
        topk_one2one: int = TOPK_ONE2ONE,
        topk2_one2one: int = TOPK2_ONE2ONE,
        **options: Any,
    ) -> None:
        """Set the hyper-parameters.

        Args:
            num_classes: C.
            strides: Pixels per cell of each level.
            reg_max: R; YOLO26 has 1.
            epochs: E, of the whole training.
            topk: Candidates per ground truth in the one-to-many part.
            topk_one2one: Candidates per ground truth in the one-to-one part.
            topk2_one2one: Anchors that each ground truth keeps in the one-to-one part.
            **options: Passed to both losses, see ``DetectionLoss``.

        Raises:
            ValueError: As ``DetectionLoss``, or ``epochs`` is not positive.
        """
        super().__init__()
        self.epochs = whole_number("epochs", epochs)
        self.updates = 0
        self.one2many = DetectionLoss(num_classes, strides, reg_max, topk=topk, **options)
        self.one2one = DetectionLoss(num_classes, strides, reg_max, topk=topk_one2one, topk2=topk2_one2one, **options)

    @property
    def one2many_share(self) -> float:
        """The share a of the one-to-many loss after ``updates`` epochs."""
        remaining = max(1 - self.updates / max(self.epochs - 1, 1), 0.0)
        return remaining * (FIRST_SHARE - LAST_SHARE) + LAST_SHARE

    @property
    def loss_names(self) -> tuple[str, str, str]:
        """Names of the three losses in ``loss_items``."""
        return self.one2one.loss_names

    def update(self) -> None:
        """Count an epoch as over."""
        self.updates += 1

    @uncompiled
    def forward(self, preds: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Compute the loss of a training batch.

        Args:
            preds: A dict of ``one2many`` and ``one2one``, each as ``DetectionLoss`` takes it, or a tuple with such a
                dict last, as a head in evaluation mode gives.
            batch: As for ``DetectionLoss``.

        Returns:
            The loss () to call ``backward`` on, times B; and the three losses of the one-to-one part (3,), detached.

        Raises:
            ValueError: A part is missing, or as ``DetectionLoss``.
        """
        result = self.evaluate(preds, batch, count_clipped=False)
        return result.loss, result.loss_items

    @uncompiled
    def evaluate(self, preds: Any, batch: Mapping[str, Any], *, count_clipped: bool = True) -> EndToEndResult:
        """Compute the loss as ``forward`` does, and return the results of both parts with it.

        Args:
            preds: As for ``forward``.
            batch: As for ``forward``.
            count_clipped: As for ``DetectionLoss.evaluate``.
        """
        one2many, one2one = (
            part.evaluate(own, batch, count_clipped=count_clipped)
            for part, own in zip((self.one2many, self.one2one), _split(preds), strict=True)
        )
        return combine(one2many, one2one, self.one2many_share)


def combine(one2many: LossResult, one2one: LossResult, share: float) -> EndToEndResult:
    """Add the losses of both parts, the one-to-many loss with this share; exported models hold this function."""
    loss = one2many.loss * share + one2one.loss * (1 - share)
    return EndToEndResult(loss, one2one.loss_items, one2many, one2one)


def _split(preds: Any) -> list[RawOutput]:
    if isinstance(preds, tuple) and preds and isinstance(preds[-1], Mapping):
        preds = preds[-1]
    missing = [name for name in PARTS if not isinstance(preds, Mapping) or name not in preds]
    if missing:
        raise ValueError(
            f"preds is {describe(preds)} without {', '.join(missing)}; give a dict of one2many and one2one, or use "
            "DetectionLoss for a head with one part"
        )
    return [preds[name] for name in PARTS]

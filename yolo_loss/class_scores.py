"""Class scores where they are asked for, out of levels that are never joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ClassScores(NamedTuple):
    """Scores of all anchors, channels first.

    Attributes:
        levels: Each (B, C, A_i), of any floating type; their anchors follow one another.
        dtype: What to compute in.
        logits: They are logits of the probabilities.
    """

    levels: Sequence[Tensor]
    dtype: torch.dtype
    logits: bool = False

    def of_pairs(self, image: Tensor, label: Tensor, anchor: Tensor) -> Tensor:
        """Probabilities of single entries.

        Args:
            image: (P,) b.
            label: (P,) class.
            anchor: (P,) a, counted over all levels.

        Returns:
            (P,).
        """
        return self._probabilities(pick(self.levels, image, label, anchor))

    def of_slots(self, labels: Tensor) -> Tensor:
        """Probabilities of each ground truth's class on all anchors.

        Args:
            labels: (B, M).

        Returns:
            (B, M, A).
        """
        images = torch.arange(labels.shape[0], device=labels.device)[:, None]
        return self._probabilities(torch.cat([level[images, labels] for level in self.levels], dim=2))

    def _probabilities(self, scores: Tensor) -> Tensor:
        scores = scores.to(self.dtype)
        return scores.sigmoid() if self.logits else scores


def pick(levels: Sequence[Tensor], image: Tensor, channel: Tensor, anchor: Tensor) -> Tensor:
    """Entries of levels that lie one behind the other along the last axis.

    Args:
        levels: Each (B, channels, A_i).
        image: Index tensors, broadcast against each other.
        channel: Likewise.
        anchor: Likewise, counted over all levels.

    Returns:
        Of the index tensors' common shape.
    """
    first, *others = levels
    offset = first.shape[2]
    picked = first[image, channel, anchor if not others else anchor.clamp(max=offset - 1)]
    for level in others:
        within = (anchor - offset).clamp(min=0, max=level.shape[2] - 1)
        picked = torch.where(anchor >= offset, level[image, channel, within], picked)
        offset = offset + level.shape[2]
    return picked


def widened(levels: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The levels in another type, those that have it as they are."""
    return [level.to(dtype) for level in levels]

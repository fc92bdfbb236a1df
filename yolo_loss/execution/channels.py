"""Channels of maps where they lie: single entries are read from levels that are never joined, split or copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Channels(NamedTuple):
    """Neighbouring channels of one level.

    Attributes:
        source: (B, K, A_i), in any layout.
        first: The first channel.
        size: How many.
    """

    source: Tensor
    first: int
    size: int

    @property
    def anchors(self) -> int:
        """A_i."""
        return self.source.shape[2]

    def view(self) -> Tensor:
        """(B, size, A_i), not copied."""
        return self.source.narrow(1, self.first, self.size)

    def part(self, first: int, size: int) -> Channels:
        """Some of them."""
        return self._replace(first=self.first + first, size=size)

    def of_images(self, images: slice) -> Channels:
        """The same of some images."""
        return self._replace(source=self.source[images])

    def pick(self, image: Tensor, channel: Tensor, anchor: Tensor) -> Tensor:
        """Single entries.

        Args:
            image: b. The three are broadcast against each other.
            channel: From 0 to size - 1.
            anchor: From 0 to A_i - 1.

        Returns:
            Of the index tensors' common shape.
        """
        numbers, begin, step = self._rows(image, channel)
        place = begin + anchor * step
        # One list of numbers and one index: indexing with three takes twice as long.
        return numbers.index_select(0, place.flatten()).view(place.shape)

    def pick_rows(self, image: Tensor, channel: Tensor, row: Tensor, anchor: Tensor) -> Tensor:
        """Single entries of many anchors from few (image, channel) rows.

        Args:
            image: (G,) b.
            channel: (G,) from 0 to size - 1.
            row: (P,) from 0 to G - 1.
            anchor: (P,) from 0 to A_i - 1.

        Returns:
            (P,).
        """
        numbers, begin, step = self._rows(image, channel)
        return numbers.index_select(0, begin.index_select(0, row) + anchor * step)

    def _rows(self, image: Tensor, channel: Tensor) -> tuple[Tensor, Tensor, int]:
        """All numbers, where each (image, channel) row begins among them, and the step between a row's anchors."""
        numbers, steps = in_memory_order(self.source)
        return numbers, image * steps[0] + (channel + self.first) * steps[1], steps[2]


def in_memory_order(source: Tensor) -> tuple[Tensor, Sequence[int]]:
    """A tensor's numbers as one list, not copied, and how far a step along each axis is in it."""
    _, channels, anchors = source.shape
    if source.is_contiguous():
        return source.flatten(), (channels * anchors, anchors, 1)
    if any(step == 0 and size > 1 for size, step in zip(source.shape, source.stride(), strict=True)):
        # Numbers that stand for several would get the mean of their derivatives.
        return in_memory_order(source.contiguous())
    if source.transpose(1, 2).is_contiguous():
        return source.transpose(1, 2).flatten(), (channels * anchors, 1, channels)
    length = 1 + sum((size - 1) * step for size, step in zip(source.shape, source.stride(), strict=True))
    return source.as_strided((length if source.numel() else 0,), (1,)), source.stride()


class ClassScores(NamedTuple):
    """Class scores of all anchors.

    Attributes:
        levels: C channels of each level, of any floating type; their anchors follow one another.
        dtype: What to compute in.
        logits: They are logits of the probabilities.
    """

    levels: Sequence[Channels]
    dtype: torch.dtype
    logits: bool = False

    def of_images(self, images: slice) -> ClassScores:
        """The same of some images."""
        return self._replace(levels=[level.of_images(images) for level in self.levels])

    def of_pairs(self, labels: Tensor, slot: Tensor, anchor: Tensor) -> Tensor:
        """Probabilities of each ground truth's class on single anchors.

        Args:
            labels: (B, M).
            slot: (P,) b * M + m.
            anchor: (P,) b * A + a, counted over all levels.

        Returns:
            (P,).
        """
        images = torch.arange(labels.shape[0], device=labels.device)[:, None].expand(labels.shape).flatten()
        labels = labels.flatten()
        offset = sum(level.anchors for level in self.levels)
        anchor = anchor - (images * offset).index_select(0, slot)
        *others, last = self.levels
        offset = offset - last.anchors
        picked = last.pick_rows(images, labels, slot, (anchor - offset).clamp(min=0) if others else anchor)
        for level in reversed(others):
            # Of the levels whose end lies behind an anchor the first is its own.
            own = level.pick_rows(
                images, labels, slot, (anchor - (offset - level.anchors)).clamp(min=0, max=level.anchors - 1)
            )
            picked = torch.where(anchor < offset, own, picked)
            offset = offset - level.anchors
        return self._probabilities(picked)

    def of_slots(self, labels: Tensor) -> Tensor:
        """Probabilities of each ground truth's class on all anchors.

        Args:
            labels: (B, M).

        Returns:
            (B, M, A).
        """
        images = torch.arange(labels.shape[0], device=labels.device)[:, None]
        return self._probabilities(torch.cat([level.view()[images, labels] for level in self.levels], dim=2))

    def _probabilities(self, scores: Tensor) -> Tensor:
        scores = scores.to(self.dtype)
        return probability(scores) if self.logits else scores


def probability(logits: Tensor) -> Tensor:
    """The sigmoid of logits of any shape, in operations that every runtime rounds well.

    torch's own depends on a number's place in the tensor, as powers do (see ``yolo_loss.assignment.params.power``).
    ONNX Runtime's is a fit that says nearly the same of all logits below -18; but the assignment compares small scores,
    too.
    """
    return 1 / (1 + torch.exp(-logits))

"""Access to channels of feature maps in place: levels are never joined, split or copied to read single elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.execution.buffers import repeat

# Anchors whose channels are written at once.
ROWS_PER_CHUNK = 2**13


class Channels(NamedTuple):
    """Consecutive channels of one level.

    Attributes:
        source: (B, K, A_i), in any memory layout.
        first: The first channel.
        size: Number of channels.
    """

    source: Tensor
    first: int
    size: int

    @property
    def anchors(self) -> int:
        """A_i."""
        return self.source.shape[2]

    def view(self) -> Tensor:
        """The channels (B, size, A_i), not copied."""
        return self.source.narrow(1, self.first, self.size)

    def narrow(self, first: int, size: int) -> Channels:
        """Select ``size`` of these channels, beginning with ``first``."""
        return self._replace(first=self.first + first, size=size)

    def of_images(self, images: slice) -> Channels:
        """Select images."""
        return self._replace(source=self.source[images])

    def pick(self, image: Tensor, channel: Tensor, anchor: Tensor) -> Tensor:
        """Gather single elements.

        Args:
            image: b. The three are broadcast against each other.
            channel: From 0 to size - 1.
            anchor: From 0 to A_i - 1.

        Returns:
            Of the index tensors' common shape.
        """
        elements, begin, step = self._rows(image, channel)
        index = begin + anchor * step
        # A flat list with one index: indexing with three takes twice as long.
        return elements.index_select(0, index.flatten()).view(index.shape)

    def put_(self, image: Tensor, anchor: Tensor, values: Tensor) -> None:
        """Write all channels at some anchors in place.

        Args:
            image: (N,) b.
            anchor: (N,) from 0 to A_i - 1; no pair of image and anchor twice.
            values: (N, size) in the source's dtype.
        """
        channels = torch.arange(self.size, device=image.device)
        for rows in range(0, len(image), ROWS_PER_CHUNK):  # an index takes twice the memory of a value
            part = slice(rows, rows + ROWS_PER_CHUNK)
            elements, begin, step = self._rows(image[part, None], channels)
            elements.index_copy_(0, begin.add_(anchor[part, None] * step).flatten(), values[part].flatten())

    def pick_rows(self, image: Tensor, channel: Tensor, row: Tensor, anchor: Tensor, per_row: Tensor | None) -> Tensor:
        """Gather single elements at many anchors from few (image, channel) rows.

        Args:
            image: (G,) b.
            channel: (G,) from 0 to size - 1.
            row: (P,) from 0 to G - 1, ascending.
            anchor: (P,) from 0 to A_i - 1.
            per_row: (G,) entries of each row, as in ``repeat``.

        Returns:
            (P,).
        """
        elements, begin, step = self._rows(image, channel)
        return elements.index_select(0, repeat(begin, row, per_row) + anchor * step)

    def _rows(self, image: Tensor, channel: Tensor) -> tuple[Tensor, Tensor, int]:
        """All elements, the index of each (image, channel) row among them, and the step between a row's anchors."""
        elements, strides = _flatten_in_place(self.source)
        return elements, image * strides[0] + (channel + self.first) * strides[1], strides[2]


def _flatten_in_place(source: Tensor) -> tuple[Tensor, Sequence[int]]:
    """The elements of a tensor as a list in memory order, not copied, and the stride of each axis in it."""
    _, channels, anchors = source.shape
    if source.is_contiguous():
        return source.flatten(), (channels * anchors, anchors, 1)
    if any(stride == 0 and size > 1 for size, stride in zip(source.shape, source.stride(), strict=True)):
        # An expanded element would get the mean of its copies' derivatives.
        return _flatten_in_place(source.contiguous())
    if source.transpose(1, 2).is_contiguous():
        return source.transpose(1, 2).flatten(), (channels * anchors, 1, channels)
    length = 1 + sum((size - 1) * stride for size, stride in zip(source.shape, source.stride(), strict=True))
    return source.as_strided((length if source.numel() else 0,), (1,)), source.stride()


class ClassScores(NamedTuple):
    """Class scores of all anchors.

    Attributes:
        levels: C channels of each level, of any floating dtype; their anchors follow one another.
        dtype: The dtype to compute in.
        logits: Whether the scores are logits; else they are probabilities.
    """

    levels: Sequence[Channels]
    dtype: torch.dtype
    logits: bool = False

    def of_images(self, images: slice) -> ClassScores:
        """Select images."""
        return self._replace(levels=[level.of_images(images) for level in self.levels])

    def of_pairs(self, labels: Tensor, slot: Tensor, anchor: Tensor, per_slot: Tensor | None = None) -> Tensor:
        """Gather the probability of each pair's ground-truth class at its anchor.

        Args:
            labels: (B, M).
            slot: (P,) b * M + m, ascending.
            anchor: (P,) b * A + a, counted over all levels.
            per_slot: (B * M,) pairs of each ground truth, as in ``repeat``.

        Returns:
            (P,).
        """
        images = torch.arange(labels.shape[0], device=labels.device)[:, None].expand(labels.shape).flatten()
        labels = labels.flatten()
        offset = sum(level.anchors for level in self.levels)
        anchor = anchor - repeat(images * offset, slot, per_slot)
        *others, last = self.levels
        offset = offset - last.anchors
        picked = last.pick_rows(images, labels, slot, (anchor - offset).clamp(min=0) if others else anchor, per_slot)
        for level in reversed(others):
            # From the last level to the first: an earlier level overwrites all anchors before its end.
            own = level.pick_rows(
                images, labels, slot, (anchor - (offset - level.anchors)).clamp(min=0, max=level.anchors - 1), per_slot
            )
            picked = torch.where(anchor < offset, own, picked)
            offset = offset - level.anchors
        return self._probabilities(picked)

    def of_slots(self, labels: Tensor, anchors: Tensor | None = None) -> Tensor:
        """Gather the probabilities of each ground truth's class at anchors.

        Args:
            labels: (B, M).
            anchors: (N,), counted over all levels; None: all A.

        Returns:
            (B, M, A), or (B, M, N).
        """
        images = torch.arange(labels.shape[0], device=labels.device)[:, None]
        if anchors is not None and len(self.levels) == 1:
            picked = self.levels[0].pick(images.unsqueeze(2), labels.unsqueeze(2), anchors)
            return self._probabilities(picked)
        picked = torch.cat([level.view()[images, labels] for level in self.levels], dim=2)
        return self._probabilities(picked if anchors is None else picked.index_select(2, anchors))

    def _probabilities(self, scores: Tensor) -> Tensor:
        scores = scores.to(self.dtype)
        return probability(scores) if self.logits else scores


def probability(logits: Tensor) -> Tensor:
    """Sigmoid of logits of any shape, in operations that every runtime rounds well.

    torch's sigmoid depends on an element's position, as its powers do (see ``yolo_loss.assignment.params.power``).
    ONNX Runtime's is an approximation that is nearly constant for logits below -18, where the assignment still compares
    scores.
    """
    return 1 / (1 + torch.exp(-logits))

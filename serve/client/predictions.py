"""What a worker predicts, decoded or as maps, of which single anchors and classes are read.

Tensors stay on their device until what is needed of them is gathered there; torch is not imported for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from yolo_assigner.serve.client.thin import Needed, ScoresAndBoxes
from yolo_assigner.serve.detection.results import Array
from yolo_loss.checks import as_array


class Predictions(Protocol):
    """Predictions of B images at A anchors for C classes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, A, C."""

    def pick(self, needed: Needed) -> ScoresAndBoxes:
        """Read the needed anchors, (N, K) and (N, 4)."""

    def everything(self) -> ScoresAndBoxes:
        """Read all, (B, A, C) and (B, A, 4)."""


class Decoded(NamedTuple):
    """Probabilities and boxes.

    Attributes:
        scores: (B, A, C) array or tensor.
        boxes: (B, A, 4) array or tensor, pixel xyxy.
    """

    scores: Any
    boxes: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, A, C."""
        images, anchors, classes = self.scores.shape
        return images, anchors, classes

    def pick(self, needed: Needed) -> ScoresAndBoxes:
        """Read the needed anchors, (N, K) and (N, 4)."""
        image, anchor, classes = needed.image, needed.anchor, needed.classes.take(needed.image, axis=0)
        if isinstance(self.scores, np.ndarray) and self.scores.flags.c_contiguous:
            # One index: indexing with three takes several times as long.
            row = image * self.scores.shape[1] + anchor
            scores = self.scores.reshape(-1).take(row[:, None] * self.scores.shape[2] + classes)
        else:
            scores = self.scores[image[:, None], anchor[:, None], classes]
        if isinstance(self.boxes, np.ndarray) and self.boxes.flags.c_contiguous:
            return _as_arrays(scores, self.boxes.reshape(-1, 4).take(image * self.boxes.shape[1] + anchor, axis=0))
        return _as_arrays(scores, self.boxes[image, anchor])

    def everything(self) -> ScoresAndBoxes:
        """Read all, (B, A, C) and (B, A, 4)."""
        return _as_arrays(self.scores, self.boxes)


class Maps(NamedTuple):
    """Raw maps of a head.

    Attributes:
        feats: One map (B, 4R + C, H_i, W_i) per level, arrays or tensors.
        strides: Pixels per cell of each level.
        points: (A, 2) float32, pixels.
        reg_max: R.
    """

    feats: Sequence[Any]
    strides: Sequence[float]
    points: Array
    reg_max: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, A, C."""
        images, channels = self.feats[0].shape[:2]
        return images, len(self.points), channels - 4 * self.reg_max

    def pick(self, needed: Needed) -> ScoresAndBoxes:
        """Read and decode the needed anchors, (N, K) and (N, 4)."""
        scores = np.zeros((len(needed.image), needed.classes.shape[1]), np.float32)
        boxes = np.zeros((len(needed.image), 4), np.float32)
        sides = np.arange(4 * self.reg_max)
        for feat, stride, first, end in self._levels():
            (rows,) = np.nonzero((needed.anchor >= first) & (needed.anchor < end))
            image, y, x = (
                part[:, None] for part in (needed.image[rows], *np.divmod(needed.anchor[rows] - first, feat.shape[3]))
            )
            logits = feat[image, 4 * self.reg_max + needed.classes[image[:, 0]], y, x]
            level = self._decode(logits, feat[image, sides, y, x], self.points[needed.anchor[rows]], stride)
            scores[rows], boxes[rows] = level
        return ScoresAndBoxes(scores, boxes)

    def everything(self) -> ScoresAndBoxes:
        """Decode all, (B, A, C) and (B, A, 4)."""
        images, _, classes = self.shape
        levels = []
        for feat, stride, first, end in self._levels():
            rows = feat.reshape(images, feat.shape[1], end - first).swapaxes(1, 2).reshape(images * (end - first), -1)
            distri, logits = rows[:, : 4 * self.reg_max], rows[:, 4 * self.reg_max :]
            points = np.tile(self.points[first:end], (images, 1))
            levels.append(self._decode(logits, distri, points, stride))
        return ScoresAndBoxes(
            *(
                np.concatenate([part.reshape(images, -1, width) for part in parts], axis=1)
                for parts, width in zip(zip(*levels, strict=True), (classes, 4), strict=True)
            )
        )

    def _levels(self) -> Iterator[tuple[Any, float, int, int]]:
        first = 0
        for feat, stride in zip(self.feats, self.strides, strict=True):
            end = first + feat.shape[2] * feat.shape[3]
            yield feat, stride, first, end
            first = end

    def _decode(self, logits: Any, distri: Any, points: Array, stride: float) -> ScoresAndBoxes:
        """Decode (n, K) and (n, 4R) logits, in float32; tensors on their device."""
        if hasattr(logits, "detach"):
            from yolo_assigner.serve.client.torch_decoding import decode_tensors

            return _as_arrays(*decode_tensors(logits, distri, points, stride, self.reg_max))
        return decode_arrays(logits, distri, points, stride, self.reg_max)


def decode_arrays(logits: Array, distri: Array, points: Array, stride: float, reg_max: int) -> ScoresAndBoxes:
    """Decode a list of anchors of one level, in float32.

    Args:
        logits: (n, K) class logits.
        distri: (n, 4R) logits of the sides' bins, side-major.
        points: (n, 2) pixels.
        stride: Pixels per cell.
        reg_max: R; with 1 the four numbers are the distances themselves.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scores = 1 / (1 + np.exp(-logits.astype(np.float32)))
        distances = distri.astype(np.float32)
        if reg_max > 1:
            bins = distances.reshape(-1, 4, reg_max)
            weights = np.exp(bins - bins.max(axis=2, keepdims=True))
            distances = (weights * np.arange(reg_max, dtype=np.float32)).sum(axis=2) / weights.sum(axis=2)
        pixels = distances * np.float32(stride)
        boxes = np.concatenate((points - pixels[:, :2], points + pixels[:, 2:]), axis=1)
    return ScoresAndBoxes(scores, boxes)


def keep_tensor(name: str, value: Any) -> Any:
    """A tensor without its gradient, on its device; anything else as an array.

    Raises:
        ValueError: Lists are irregular, or elements are not numbers.
    """
    return value.detach() if hasattr(value, "detach") else as_array(name, value, np.float32)


def _as_arrays(scores: Any, boxes: Any) -> ScoresAndBoxes:
    return ScoresAndBoxes(as_array("pd_scores", scores, np.float32), as_array("pd_bboxes", boxes, np.float32))

"""Which elements of the class loss count, and with what weight: weights of classes, and regions to ignore."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.dense import is_inside
from yolo_loss.execution.buffers import constants
from yolo_loss.execution.channels import Channels
from yolo_loss.execution.chunks import chunk_slices, runs_unchunked
from yolo_loss.structures import Assignment, ClassInputs, Predictions
from yolo_loss.validate import readable_values

# (Region, anchor) pairs that are compared at once, where a processor's cache holds them.
PAIRS_PER_CHUNK = 2**17


class ClassFactors(NamedTuple):
    """Factors of the class loss's elements.

    An element with factor 0 is left out, not multiplied by 0: whatever its logit is, it adds nothing and has gradient
    0.

    Attributes:
        class_weights: (B, C) not negative; None: all 1.
        unweighted: (B, C) bool, where ``class_weights`` is 0; None where that is nowhere.
        ignored: (B, A) bool, anchors without a class loss; None: no anchor.
    """

    class_weights: Tensor | None = None
    unweighted: Tensor | None = None
    ignored: Tensor | None = None

    def of_images(self, images: slice) -> ClassFactors:
        """Select images."""
        return ClassFactors(*(None if field is None else field[images] for field in self))

    def mask(self, logits: Tensor) -> Tensor:
        """Set the logits (B, C, A) that do not count to -inf, where the background loss and its derivative are 0."""
        if self.unweighted is not None:
            logits = torch.where(self.unweighted.unsqueeze(2), -math.inf, logits)
        return logits if self.ignored is None else torch.where(self.ignored.unsqueeze(1), -math.inf, logits)

    def mask_level(self, logits: Channels) -> Channels:
        """``mask`` for the channels of a level."""
        return Channels(self.mask(logits.view()), 0, logits.size)

    def zero_(self, gradient: Tensor) -> None:
        """Set the gradients (B, C, A) of logits that do not count to 0, in place."""
        if self.unweighted is not None:
            gradient.masked_fill_(self.unweighted.unsqueeze(2), 0.0)
        if self.ignored is not None:
            gradient.masked_fill_(self.ignored.unsqueeze(1), 0.0)

    def weigh(self, values: Tensor) -> Tensor:
        """Multiply values (B, C, A) by the weights of their classes."""
        return values if self.class_weights is None else values * self.class_weights.unsqueeze(2)

    def of_labels(self, labels: Tensor) -> Tensor | None:
        """Look up the weight of one class for each anchor.

        Args:
            labels: (B, A).

        Returns:
            (B, A); None: all 1.
        """
        return None if self.class_weights is None else self.class_weights.gather(1, labels)

    def of_rows(self, image: Tensor, label: Tensor, index: Tensor) -> Tensor | None:
        """Look up the factor of one class at each of N anchors.

        Args:
            image: (N,) b.
            label: (N,).
            index: (N,) b * A + a.

        Returns:
            (N,); None: all 1.
        """
        factor = None
        if self.class_weights is not None:
            place = image * self.class_weights.shape[1] + label
            factor = self.class_weights.flatten().index_select(0, place)
        if self.ignored is None:
            return factor
        ignored = self.ignored.flatten().index_select(0, index)
        return torch.where(ignored, 0.0, 1.0 if factor is None else factor)


def factors_of_levels(factors: ClassFactors | None, levels: Sequence[Channels]) -> list[ClassFactors | None]:
    """Split the anchors of factors into levels; None is None on each."""
    if factors is None or factors.ignored is None:
        return [factors] * len(levels)
    parts: list[ClassFactors | None] = []
    begin = 0
    for level in levels:
        parts.append(factors._replace(ignored=factors.ignored.narrow(1, begin, level.anchors)))
        begin += level.anchors
    return parts


@torch.no_grad()
def class_factors(
    fixed: Sequence[float] | None,
    inputs: ClassInputs,
    predictions: Predictions,
    assignment: Assignment,
    eps: float,
) -> ClassFactors | None:
    """Combine the weights of the classes, and find the anchors to ignore.

    Args:
        fixed: (C,) weights for every image; None: 1.
        inputs: Weights and regions of this batch.
        predictions: The head's output.
        assignment: Its targets.
        eps: An anchor is in a region when its distance from every side is larger.

    Returns:
        The factors; None where all are 1.
    """
    weights, ignored = _combine(fixed, inputs.class_weights, predictions), None
    if inputs.ignore_bboxes is not None and inputs.mask_ignore is not None:
        points = predictions.anchor_points * predictions.strides
        boxes = inputs.ignore_bboxes.to(points.dtype)
        ignored = anchors_inside(points, boxes, inputs.mask_ignore.bool(), eps) & ~assignment.fg_mask
    if weights is None:
        return None if ignored is None else ClassFactors(ignored=ignored)
    unweighted = weights == 0
    values = readable_values(unweighted)
    return ClassFactors(weights, None if values is not None and not values.any() else unweighted, ignored)


def _combine(fixed: Sequence[float] | None, of_batch: Tensor | None, predictions: Predictions) -> Tensor | None:
    """Weights (B, C); None: all 1."""
    like, images = predictions.anchor_points, predictions.levels[0].scores_source.shape[0]
    weights = None if of_batch is None else of_batch.to(like.dtype)
    if fixed is not None:
        every = constants(fixed, like)  # (C,)
        weights = every.expand(images, -1) if weights is None else weights * every
    return weights


def anchors_inside(points: Tensor, boxes: Tensor, valid: Tensor, eps: float) -> Tensor:
    """Find the anchors whose centre lies inside one of several boxes of their image; boxes are not enlarged.

    Args:
        points: (A, 2) pixels.
        boxes: (B, I, 4) pixel xyxy; I may be 0.
        valid: (B, I, 1) bool.
        eps: As in :func:`class_factors`.

    Returns:
        (B, A) bool.
    """
    images, regions, _ = boxes.shape
    if runs_unchunked(points.device):
        return (is_inside(points, boxes, eps) & valid).any(dim=1)
    slices = chunk_slices([regions * points.shape[0]] * images, PAIRS_PER_CHUNK)
    return torch.cat([(is_inside(points, boxes[part], eps) & valid[part]).any(dim=1) for part in slices])

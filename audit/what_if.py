"""Candidates that boxes would have with other settings; follows from their geometry, without predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_assigner.audit.structures import Changes
from yolo_loss.assignment.params import enlarge
from yolo_loss.option_checks import default_min_box_side


class Tried(NamedTuple):
    """What is tried beside the settings in use.

    Attributes:
        min_box_side: Pixels.
        imgsz: Longest side of the image, in pixels; a multiple of the coarsest stride.
        stride: Of a further, finer level: half the finest stride; a P2 head's where that is 8.
    """

    min_box_side: float
    imgsz: float
    stride: float


def choose(changes: Changes, strides: Sequence[float], imgsz: float, min_box_side: float | None) -> Tried:
    """Choose what is tried where the user did not.

    Args:
        changes: The user's choice.
        strides: Of the head.
        imgsz: Longest side of the images in use.
        min_box_side: In use.
    """
    side = changes.min_box_side
    if side is None:
        second = default_min_box_side(strides)
        side = second if min_box_side is None or min_box_side < second else 2 * min_box_side
    step = strides[-1]
    larger = step * -(-(changes.imgsz or 2 * imgsz) // step)
    return Tried(float(side), float(larger), strides[0] / 2)


def larger_grid(boxes: Tensor, size: tuple[int, int], tried: Tried) -> tuple[Tensor, tuple[int, int]]:
    """Scale boxes (N, 4) and image size (height, width), pixels, to the image size that is tried."""
    factor = tried.imgsz / max(size)
    return boxes * factor, (round(size[0] * factor), round(size[1] * factor))


def count_candidates(
    boxes: Tensor, size: tuple[int, int], strides: Sequence[float], eps: float, min_box_side: float | None
) -> Tensor:
    """Count anchor centres inside boxes, by the same comparisons as the assignment.

    Args:
        boxes: (N, 4) pixel xyxy.
        size: Height and width of the image in pixels.
        strides: L strides.
        eps: An anchor is inside when its distance from every side is larger.
        min_box_side: Smaller sides are enlarged to it; None: they are not.

    Returns:
        (N, L) int64.
    """
    x1, y1, x2, y2 = enlarge(boxes, min_box_side).unbind(-1)
    counts = []
    for stride in strides:
        height, width = (-(-side // int(stride)) for side in size)
        counts.append(_inside(x1, x2, width, stride, eps) * _inside(y1, y2, height, stride, eps))
    return torch.stack(counts, dim=1)


def iou_ceiling(
    box: Sequence[float], size: tuple[int, int], strides: Sequence[float], eps: float, min_box_side: float
) -> float:
    """The largest IoU that a prediction at any candidate of a box can have with it.

    No side of a prediction can be on the other side of its anchor. So at an anchor that lies ``dx`` and ``dy`` pixels
    outside of a box of w x h pixels, the best prediction is the box extended to the anchor: w h / ((w + dx) (h + dy)).

    Args:
        box: Pixel xyxy.
        size: Height and width of the image in pixels.
        strides: L strides.
        eps: As for ``count_candidates``.
        min_box_side: Pixels; sides are enlarged to it to find candidates.

    Returns:
        0 without candidates.
    """
    best = 0.0
    corners = torch.tensor([box], dtype=torch.float32)
    grown = enlarge(corners, min_box_side)[0].tolist()
    for stride in strides:
        kept = 1.0
        for axis, cells in enumerate(-(-side // int(stride)) for side in reversed(size)):
            centres = (torch.arange(cells) + 0.5) * stride
            centres = centres[torch.minimum(centres - grown[axis], grown[axis + 2] - centres) > eps]
            length = box[axis + 2] - box[axis]
            outside = torch.maximum(box[axis] - centres, centres - box[axis + 2]).clamp(min=0)
            kept *= length / (length + outside.min().item()) if len(centres) else 0.0
        best = max(best, kept)
    return best


def _inside(low: Tensor, high: Tensor, cells: int, stride: float, eps: float) -> Tensor:
    """Centres along one axis that lie between both sides, (N,)."""
    centres = (torch.arange(cells, dtype=low.dtype) + 0.5) * stride
    return (torch.minimum(centres - low[:, None], high[:, None] - centres) > eps).sum(dim=1)

"""Lower bounds ("floors") of time: the bytes that must move, at the speed at which the device copies.

The first floor counts every input and every output once, and no intermediate. The stricter floor, which the goals use,
counts only what the result depends on: for the assignment the scores of a box's class at anchors within the box, the
predicted boxes of these anchors, and the outputs without ``target_gt_idx``, which exported models are not asked for;
for the loss all class logits, and the box logits of these anchors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.contenders import STRIDES, Setting
from yolo_loss import GroundTruth, make_anchors

REG_MAX = 16
FLOAT, LONG, FLAG = 4, 8, 1


def bytes_of(setting: Setting, element: int) -> int:
    """Bytes of the first floor.

    Args:
        setting: Task and sizes.
        element: Bytes of a class score, or of a logit of a map.
    """
    truth = setting.batch * setting.slots * (LONG + 4 * FLOAT + FLAG)
    if setting.task == "assigner":
        return truth + _assigner(setting, element)
    maps = setting.batch * anchors_of(setting) * (4 * REG_MAX + setting.classes) * element
    # The gradients are as large as the maps; the loss and its three terms are a few bytes.
    return truth + maps * (2 if setting.task == "loss+grad" else 1)


def _assigner(setting: Setting, element: int) -> int:
    anchors = anchors_of(setting)
    read = setting.classes * element + 4 * FLOAT  # scores and boxes
    written = LONG + 4 * FLOAT + setting.classes * FLOAT + FLAG + LONG  # labels, boxes, scores, mask, indices
    return anchors * 2 * FLOAT + setting.batch * anchors * (read + written)


class Needed(NamedTuple):
    """Numbers of inputs that decide the result, in all images together.

    Attributes:
        anchors: Number of anchors within a box.
        scores: Number of pairs of an anchor and a class such that a box of the class contains the anchor.
    """

    anchors: int
    scores: int


def needed_of(setting: Setting, truth: GroundTruth) -> Needed:
    """Count the needed inputs of one input set.

    Args:
        setting: Sizes of the set.
        truth: Ground truth, in pixels.
    """
    side = [max(int(setting.image // stride), 1) for stride in STRIDES]
    points, strides = make_anchors([torch.empty(1, 1, size, size) for size in side], STRIDES)
    points = (points * strides).to(truth.gt_bboxes.device)  # (A, 2)
    anchors = scores = 0
    for labels, boxes, mask in zip(*truth, strict=True):
        inside = within(points, boxes) & mask.view(-1, 1).bool()  # (M, A)
        of_class = torch.zeros(setting.classes, len(points), device=points.device)
        of_class.index_add_(0, labels.view(-1).long(), inside.float())
        anchors += int(inside.any(0).sum())
        scores += int((of_class > 0).sum())
    return Needed(anchors, scores)


def within(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points (A, 2) lie within which boxes (M, 4): (M, A). Small boxes are not enlarged: the floor is lower."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return ((points > low) & (points < high)).all(-1)


def needed_bytes(setting: Setting, element: int, needed: Needed) -> int:
    """Bytes of the stricter floor.

    Args:
        setting: Task and sizes.
        element: Bytes of a class score, or of a logit of a map.
        needed: Numbers of the inputs that decide the result.
    """
    every = setting.batch * anchors_of(setting)
    if setting.task == "assigner":
        unread = (every * setting.classes - needed.scores) * element + (every - needed.anchors) * 4 * FLOAT
        return bytes_of(setting, element) - unread - every * LONG
    return bytes_of(setting, element) - (every - needed.anchors) * 4 * REG_MAX * element


def anchors_of(setting: Setting) -> int:
    """Number of anchors A per image."""
    return sum(max(int(setting.image // stride), 1) ** 2 for stride in STRIDES)


def floor_ms(mib: float, gigabytes_per_second: float) -> float:
    """Milliseconds in which the device moves a number of bytes.

    Args:
        mib: MiB that must move.
        gigabytes_per_second: Speed of a copy, read and written bytes together; 1 GB is 10^9 bytes.
    """
    return mib * 2**20 / gigabytes_per_second / 1e6

"""Lower bound ("floor") of time: the bytes that must move, at the speed at which the device copies.

Only what the result depends on counts, once, and no intermediate. For the assignment these are the scores of a box's
class at anchors within the box, the predicted boxes of these anchors, the points, and all outputs but
``target_gt_idx``, which exported models are not asked for. For the loss: all class logits, the box logits of anchors
within a box, and the gradients of all maps. Small boxes are not enlarged, which lowers the floor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common.inputs import REG_MAX, STRIDES, Setting
from yolo_loss import GroundTruth, make_anchors

FLOAT, LONG, FLAG = 4, 8, 1


class Needed(NamedTuple):
    """Numbers of inputs that decide the result, in all images together.

    Attributes:
        anchors: Number of anchors within a box.
        scores: Number of pairs of an anchor and a class such that a box of the class contains the anchor.
    """

    anchors: int
    scores: int


def floor_bytes(setting: Setting, element: int, needed: Needed) -> int:
    """Bytes that must move.

    Args:
        setting: Task and sizes.
        element: Bytes of a class score, or of a logit of a map.
        needed: Numbers of the inputs that decide the result.
    """
    anchors = len(points_of(setting))
    every = setting.batch * anchors
    if setting.task == "assigner":
        read = needed.scores * element + needed.anchors * 4 * FLOAT + anchors * 2 * FLOAT
        written = every * (LONG + 4 * FLOAT + setting.classes * FLOAT + FLAG)  # labels, boxes, scores, mask
    else:
        read = (every * setting.classes + needed.anchors * 4 * REG_MAX) * element
        written = every * (setting.classes + 4 * REG_MAX) * element if setting.task == "loss+grad" else 0
    return setting.batch * setting.slots * (LONG + 4 * FLOAT + FLAG) + read + written


def needed_of(setting: Setting, truth: GroundTruth) -> Needed:
    """Count the needed inputs of one input set, whose ground truth is in pixels."""
    points = points_of(setting).to(truth.gt_bboxes.device)
    anchors = scores = 0
    for labels, boxes, mask in zip(*truth, strict=True):
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        inside = ((points > low) & (points < high)).all(-1) & mask.view(-1, 1).bool()  # (M, A)
        of_class = torch.zeros(setting.classes, len(points), device=points.device)
        of_class.index_add_(0, labels.view(-1).long(), inside.float())
        anchors += int(inside.any(0).sum())
        scores += int((of_class > 0).sum())
    return Needed(anchors, scores)


def points_of(setting: Setting) -> Tensor:
    """Anchor points (A, 2) in pixels."""
    points, strides = make_anchors([torch.empty(1, 1, *grid) for grid in setting.case.grids], STRIDES)
    return points * strides

"""All (ground truth, anchor) pairs whose anchor lies inside the box, listed without looking at the others.

Anchor points of a feature pyramid come in rows: equal y, x in equal steps. A box takes from each row that it crosses
one run of neighbours, so comparing boxes with rows and then writing out the runs gives every pair. Points in any other
order are rows of one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.segments import segment_of, size_of, sum_per_segment

# A row's points may lie this far, in steps, from where equal steps would put them.
_ROW_TOLERANCE = 1e-3


class Rows(NamedTuple):
    """Anchors in maximal rows of equal steps.

    Attributes:
        start: (N,) int64, index of each row's first anchor.
        length: (N,) int64, its anchors.
        x: (N,) of the first anchor.
        y: (N,).
        step: (N,) between neighbours; 1 in rows of one.
    """

    start: Tensor
    length: Tensor
    x: Tensor
    y: Tensor
    step: Tensor


class Pairs(NamedTuple):
    """Candidate pairs, ordered by ground truth, then by anchor.

    Attributes:
        slot: (P,) int64, b * M + m.
        anchor: (P,) int64, b * A + a.
        per_slot: (B * M,) int64, pairs of each ground truth.
    """

    slot: Tensor
    anchor: Tensor
    per_slot: Tensor


def find_rows(points: Tensor) -> Rows:
    """Split anchor points into rows.

    Args:
        points: (A, 2), A >= 1.
    """
    x, y = points.unbind(-1)
    last = points.shape[0] - 1
    index = torch.arange(points.shape[0], device=points.device)
    step = x.roll(-1, 0) - x  # (A,) to the next point; the last one's is not used
    level = (y.roll(-1, 0) == y) & (step > 0) & (index < last)  # the next point may be of the same row
    begins = ~level.roll(1, 0) | (index == 0)
    row = begins.cumsum(0) - 1
    first = begins.nonzero().squeeze(1)
    own_step = step[first][row]
    drift = (x - (x[first][row] + own_step * (index - first[row]))).abs()
    # One point off its place breaks the whole row into single points: slow for odd inputs, right for all.
    uneven = torch.zeros_like(first).index_add(0, row, (drift > _ROW_TOLERANCE * own_step.abs()).long()) > 0
    begins = begins | uneven[row]
    start = begins.nonzero().squeeze(1)
    length = torch.cat((start[1:], index[-1:] + 1)) - start
    return Rows(start, length, x[start], y[start], torch.where(length > 1, step[start], 1.0))


def list_pairs(points: Tensor, boxes: Tensor, valid: Tensor, eps: float) -> Pairs:
    """Candidate pairs of all images.

    Args:
        points: (A, 2) pixels.
        boxes: (B, M, 4) pixel xyxy.
        valid: (B, M) bool.
        eps: A point is inside when its distance from every side is larger.
    """
    rows = find_rows(points)
    slot, row = crossings(rows, boxes, valid, eps)  # (S,) each
    images, slots = valid.shape
    x1, x2 = boxes[..., 0].flatten()[slot], boxes[..., 2].flatten()[slot]
    origin, step, count = rows.x[row], rows.step[row], rows.length[row]
    first = ((x1 - origin) / step - 2 * _ROW_TOLERANCE).ceil().clamp(min=0.0).minimum(count).long()
    past = ((x2 - origin) / step + 2 * _ROW_TOLERANCE + 1).floor().clamp(min=0.0).minimum(count).long()
    # The estimate may take in one point too many on either side; the exact comparison decides.
    x, start, last = points[:, 0], rows.start[row], points.shape[0] - 1
    first = first + (x[(start + first).clamp(max=last)] - x1 <= eps).long()
    past = past - (x2 - x[(start + past - 1).clamp(min=0)] <= eps).long()
    length = (past - first).clamp(min=0)
    begin = start + first + torch.div(slot, slots, rounding_mode="floor") * points.shape[0]
    return Pairs(*write_out(slot, begin, length), sum_per_segment(slot, length, images * slots))


def crossings(rows: Rows, boxes: Tensor, valid: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Which box crosses which row.

    Returns:
        b * M + m and the row's number, each (S,), ordered by both.
    """
    y1, y2 = boxes[..., 1].reshape(-1, 1), boxes[..., 3].reshape(-1, 1)  # (B * M, 1)
    crosses = (torch.minimum(rows.y - y1, y2 - rows.y) > eps) & valid.reshape(-1, 1)  # (B * M, N)
    slot, row = crosses.nonzero().unbind(1)
    return slot, row


def write_out(slot: Tensor, begin: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of neighbours, one after the other.

    Args:
        slot: (S,) whose run it is.
        begin: (S,) the run's first anchor.
        length: (S,) its anchors, 0 too.

    Returns:
        Slot and anchor of each pair, each (P,).
    """
    total = size_of(length.sum())
    run = segment_of(length, total)
    offset = begin - (length.cumsum(0) - length)
    return slot.index_select(0, run), offset.index_select(0, run) + torch.arange(total, device=slot.device)

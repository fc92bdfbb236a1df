"""All (ground truth, anchor) pairs whose anchor lies inside the box, listed without looking at the others.

A box takes from each block of rows some neighbouring rows, and from each of these one run of neighbouring points.
Writing out the runs gives every pair.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.lattice import Lattice, lattice_of, span
from yolo_loss.segments import keep_last, lengthen_last, places_of, segment_of, size_of, sum_per_segment


class Runs(NamedTuple):
    """Runs of neighbouring anchors, each inside one box, ordered by ground truth, then by anchor.

    Attributes:
        slot: (S,) int64, b * M + m.
        begin: (S,) int64, its first anchor, b * A + a.
        length: (S,) int64, its anchors, 0 too.
    """

    slot: Tensor
    begin: Tensor
    length: Tensor


class Pairs(NamedTuple):
    """Candidate pairs, ordered by ground truth, then by anchor.

    Attributes:
        slot: (P,) int64, b * M + m.
        anchor: (P,) int64, b * A + a.
    """

    slot: Tensor
    anchor: Tensor


def list_runs(points: Tensor, boxes: Tensor, valid: Tensor, eps: float) -> Runs:
    """Candidates of all images, as runs.

    Args:
        points: (A, 2) pixels, A >= 1.
        boxes: (B, M, 4) pixel xyxy.
        valid: (B, M) bool.
        eps: A point is inside when its distance from every side is larger.
    """
    lattice = lattice_of(points)
    # An empty box has no point inside, also where a list's filler asks for it.
    boxes = torch.where(valid.unsqueeze(-1), boxes, 0.0)
    x1, y1, x2, y2 = (side.flatten() for side in boxes.unbind(-1))  # (B * M,) each
    slot, block = crossings(lattice, y1, y2, x2 > x1, eps)
    low, high = y1.index_select(0, slot), y2.index_select(0, slot)
    begin, length = span(lattice.blocks.of(block), lattice.y, low, high, eps)
    slot, row = write_out(Runs(slot, begin, lengthen_last(length)))
    low, high = x1.index_select(0, slot), x2.index_select(0, slot)
    begin, length = span(lattice.rows.of(row), lattice.x, low, high, eps)
    image = torch.div(slot, valid.shape[1], rounding_mode="floor")
    return Runs(slot, begin + image * points.shape[0], lengthen_last(length))


def crossings(lattice: Lattice, y1: Tensor, y2: Tensor, valid: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Which box may reach into which block of rows.

    Args:
        lattice: N rows in K blocks.
        y1: (G,) upper edges.
        y2: (G,) lower edges.
        valid: (G,) bool.
        eps: As in :func:`list_runs`.

    Returns:
        Ground truth and block, each (number of crossings,), ordered by both.
    """
    top = lattice.blocks.origin  # (K,)
    bottom = lattice.y.index_select(0, lattice.blocks.start + lattice.blocks.length - 1)
    reaches = (bottom - y1[:, None] > eps) & (y2[:, None] - top > eps) & valid[:, None]  # (G, K)
    found, blocks = places_of(keep_last(reaches.flatten())), top.shape[0]
    slot = torch.div(found, blocks, rounding_mode="floor")
    return slot, found - slot * blocks


def write_out(runs: Runs) -> Pairs:
    """The members of runs, one after the other."""
    slot, begin, length = runs
    total = size_of(length.sum())
    run = segment_of(length, total)
    offset = begin - (length.cumsum(0) - length)
    place = torch.arange(total, device=slot.device)
    return Pairs(slot.index_select(0, run), offset.index_select(0, run) + place)


def pairs_of_images(runs: Runs, images: int, slots: int) -> Tensor:
    """How many pairs each image has.

    Returns:
        (B,) int64.
    """
    return sum_per_segment(torch.div(runs.slot, slots, rounding_mode="floor"), runs.length, images)

"""The regular structure of anchor points, which finds the anchors inside a box from the box's sides alone.

The points of a feature pyramid form rows of equal y with equal steps in x, and the rows of a level form a block with
equal steps in y. Points in any other order form rows of one point, for which the same functions hold.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.segment_ops import (
    as_size,
    extend_for_dummy,
    keep_dummy,
    segment_ids,
    segment_sum,
    true_indices,
)
from yolo_loss.execution.buffers import MIN_ARRAY, is_plain, repeat

# How far, in steps, a member may lie from its position in an exactly regular run.
TOLERANCE = 1e-3


class RegularRuns(NamedTuple):
    """Maximal runs of members in equal ascending steps. The runs follow one another without gaps.

    Attributes:
        start: (N,) int64, index of each run's first member.
        length: (N,) int64, number of members.
        origin: (N,) position of the first member.
        step: (N,) distance of neighbours; 1 in a run of one member.
    """

    start: Tensor
    length: Tensor
    origin: Tensor
    step: Tensor

    def select(self, index: Tensor) -> RegularRuns:
        """Gather runs by index; indices may repeat."""
        return RegularRuns(*(field.index_select(0, index) for field in self))


class AnchorGrid(NamedTuple):
    """Anchor points with their rows and blocks of rows.

    Attributes:
        x: (A,) of each point.
        y: (N,) of each row.
        rows: N runs of points along x.
        blocks: K runs of rows along y.
    """

    x: Tensor
    y: Tensor
    rows: RegularRuns
    blocks: RegularRuns


class IndexRanges(NamedTuple):
    """Ranges of consecutive anchors inside one box, ordered by ground truth, then by anchor.

    Attributes:
        slot: (S,) int64, b * M + m.
        begin: (S,) int64, the first anchor, b * A + a.
        length: (S,) int64, number of anchors; may be 0.
    """

    slot: Tensor
    begin: Tensor
    length: Tensor


class CandidatePairs(NamedTuple):
    """Pairs of a ground truth and an anchor inside it, ordered by ground truth, then by anchor.

    Attributes:
        slot: (P,) int64, b * M + m.
        anchor: (P,) int64, b * A + a.
    """

    slot: Tensor
    anchor: Tensor


def candidate_ranges(points: Tensor, boxes: Tensor, valid: Tensor, eps: float) -> IndexRanges:
    """Find the candidate anchors of every ground truth, as ranges.

    Args:
        points: (A, 2) pixels, A >= 1.
        boxes: (B, M, 4) pixel xyxy.
        valid: (B, M) bool.
        eps: A point is inside when its distance from every side is larger.
    """
    grid = cached_anchor_grid(points)
    # No point lies inside an empty box, even where a graph's dummy entry asks for it.
    boxes = torch.where(valid.unsqueeze(-1), boxes, 0.0)
    x1, y1, x2, y2 = (side.flatten() for side in boxes.unbind(-1))  # (B * M,) each
    slot, block = _overlapping_blocks(grid, y1, y2, x2 > x1, eps)
    low, high = y1.index_select(0, slot), y2.index_select(0, slot)
    begin, length = _members_between(grid.blocks.select(block), grid.y, low, high, eps)
    slot, row = expand_ranges(IndexRanges(slot, begin, extend_for_dummy(length)))
    low, high = x1.index_select(0, slot), x2.index_select(0, slot)
    begin, length = _members_between(grid.rows.select(row), grid.x, low, high, eps)
    image = torch.div(slot, valid.shape[1], rounding_mode="floor")
    return IndexRanges(slot, begin + image * points.shape[0], extend_for_dummy(length))


def expand_ranges(ranges: IndexRanges) -> CandidatePairs:
    """List the members of all ranges, one range after the other."""
    slot, begin, length = ranges
    total = as_size(length.sum())
    offset = begin - (length.cumsum(0) - length)
    position = torch.arange(total, device=slot.device)
    listed = is_plain(length) and total >= MIN_ARRAY  # by numpy, which needs no source
    source = position if listed else segment_ids(length, total)
    return CandidatePairs(repeat(slot, source, length), repeat(offset, source, length) + position)


def count_pairs_per_image(ranges: IndexRanges, images: int, slots: int) -> Tensor:
    """Count the candidate pairs of each image.

    Returns:
        (B,) int64.
    """
    return segment_sum(torch.div(ranges.slot, slots, rounding_mode="floor"), ranges.length, images)


def cached_anchor_grid(points: Tensor) -> AnchorGrid:
    """:func:`find_anchor_grid` with the last result cached: points seldom change from one call to the next.

    Args:
        points: (A, 2), A >= 1.
    """
    return find_anchor_grid(points) if torch.compiler.is_compiling() else _grid_of(_PointsKey(points))


class _PointsKey:
    """A copy of anchor points that hashes and compares by value."""

    def __init__(self, points: Tensor) -> None:
        self.points = points.clone()
        self.kind = (points.shape, points.dtype, points.device)

    def __hash__(self) -> int:
        return hash(self.kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PointsKey) and self.kind == other.kind and torch.equal(self.points, other.points)


@lru_cache(maxsize=1)
def _grid_of(key: _PointsKey) -> AnchorGrid:
    return find_anchor_grid(key.points)


def find_anchor_grid(points: Tensor) -> AnchorGrid:
    """Split anchor points into rows, and rows into blocks.

    Args:
        points: (A, 2), A >= 1.
    """
    x, y = points[:, 0].contiguous(), points[:, 1]
    rows = _find_regular_runs(x, _next(y) == y)
    y = y.index_select(0, rows.start)
    alike = torch.ones_like(y, dtype=torch.bool)
    for field in (rows.length, rows.origin, rows.step):
        alike = alike & (_next(field) == field)
    return AnchorGrid(x, y, rows, _find_regular_runs(y, alike))


def _next(values: Tensor) -> Tensor:
    """The successor of each value; the last one is its own."""
    # Not roll: export cannot write it down for an unknown length.
    index = torch.arange(1, values.shape[0] + 1, device=values.device)
    return values.index_select(0, index.clamp(max=values.shape[0] - 1))


def _find_regular_runs(position: Tensor, linked: Tensor) -> RegularRuns:
    """Split members into regular runs.

    Args:
        position: (N,), N >= 1, of each member.
        linked: (N,) bool, whether a member may share a run with the next; the last entry is ignored.
    """
    index = torch.arange(position.shape[0], device=position.device)
    step = _next(position) - position  # (N,) to the next; 0 at the end
    joins = linked & (step > 0)
    begins = ~joins.index_select(0, (index - 1).clamp(min=0)) | (index == 0)
    run = begins.cumsum(0) - 1
    first = true_indices(begins).index_select(0, run)
    run_step = step.index_select(0, first)
    drift = (position - (position.index_select(0, first) + run_step * (index - first))).abs()
    # One member off its position splits the whole run into single members: slow for odd inputs, correct for all.
    uneven = torch.zeros_like(index).index_add(0, run, (drift > TOLERANCE * run_step.abs()).long()) > 0
    begins = begins | uneven.index_select(0, run)
    start = true_indices(begins)
    length = torch.zeros_like(start).index_add(0, begins.cumsum(0) - 1, torch.ones_like(index))
    step = torch.where(length > 1, step.index_select(0, start), 1.0)
    return RegularRuns(start, length, position.index_select(0, start), step)


def _members_between(
    runs: RegularRuns, positions: Tensor, low: Tensor, high: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Find the members of each run that lie between two bounds.

    Args:
        runs: (N,) each.
        positions: Of all members of all runs.
        low: (N,).
        high: (N,).
        margin: A member is between when its distance from both bounds is larger.

    Returns:
        Index of the first such member, in range also where there is none, and their number, each (N,) int64.
    """
    start, count, origin, step = runs
    first = ((low - origin) / step - 2 * TOLERANCE).ceil().clamp(min=0.0).minimum(count).long()
    past = ((high - origin) / step + 2 * TOLERANCE + 1).floor().clamp(min=0.0).minimum(count).long()
    # The estimate may include one too many on either side; the exact comparison decides.
    last = positions.shape[0] - 1
    first = first + (positions.index_select(0, (start + first).clamp(max=last)) - low <= margin).long()
    past = past - (high - positions.index_select(0, (start + past - 1).clamp(min=0)) <= margin).long()
    return (start + first).clamp(max=last), (past - first).clamp(min=0)


def _overlapping_blocks(grid: AnchorGrid, y1: Tensor, y2: Tensor, valid: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Pair each box with the blocks of rows it may reach into.

    Args:
        grid: N rows in K blocks.
        y1: (G,) upper sides.
        y2: (G,) lower sides.
        valid: (G,) bool.
        eps: As in :func:`candidate_ranges`.

    Returns:
        Ground truth and block of each pair, ordered by both.
    """
    top = grid.blocks.origin  # (K,)
    bottom = grid.y.index_select(0, grid.blocks.start + grid.blocks.length - 1)
    reaches = (bottom - y1[:, None] > eps) & (y2[:, None] - top > eps) & valid[:, None]  # (G, K)
    found, blocks = true_indices(keep_dummy(reaches.flatten())), top.shape[0]
    slot = torch.div(found, blocks, rounding_mode="floor")
    return slot, found - slot * blocks

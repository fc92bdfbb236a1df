"""The regular structure of anchor points, which finds the anchors inside a box from the box's sides alone.

The points of a feature pyramid form rows of equal y with equal steps in x, and the rows of a level form a block with
equal steps in y. Points in any other order form rows of one point, for which the same functions hold.
"""

from __future__ import annotations

import math
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


class AnchorGrids(NamedTuple):
    """The anchor points of S sets, one set after the other, with their rows and blocks; none reaches into another set.

    Attributes:
        grid: Of all S * A points.
        first_block: (S,) int64, the first of each set's blocks, which follow one another.
        num_blocks: (S,) int64, at least 1.
    """

    grid: AnchorGrid
    first_block: Tensor
    num_blocks: Tensor


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
        points: (A, 2) pixels, A >= 1; or (S, A, 2), where S is B for points of each image, or 1.
        boxes: (B, M, 4) pixel xyxy.
        valid: (B, M) bool.
        eps: A point is inside when its distance from every side is larger.
    """
    sets = find_anchor_grids(points) if points.shape[:-2] else None
    grid = cached_anchor_grid(points) if sets is None else sets.grid
    # No point lies inside an empty box, even where a graph's dummy entry asks for it.
    boxes = torch.where(valid.unsqueeze(-1), boxes, 0.0)
    x1, y1, x2, y2 = (side.flatten() for side in boxes.unbind(-1))  # (B * M,) each
    if sets is None:
        slot, block = _overlapping_blocks(grid, y1, y2, x2 > x1, eps)
    else:
        slot, block = _overlapping_blocks_of_sets(sets, boxes, eps)
    low, high = y1.index_select(0, slot), y2.index_select(0, slot)
    begin, length = _members_between(grid.blocks.select(block), grid.y, low, high, eps)
    slot, row = expand_ranges(IndexRanges(slot, begin, extend_for_dummy(length)))
    low, high = x1.index_select(0, slot), x2.index_select(0, slot)
    begin, length = _members_between(grid.rows.select(row), grid.x, low, high, eps)
    image = torch.div(slot, valid.shape[1], rounding_mode="floor")
    if sets is not None:  # which already counts the points of the sets before the image's own
        image = image - image.clamp(max=points.shape[0] - 1)
    return IndexRanges(slot, begin + image * points.shape[-2], extend_for_dummy(length))


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
    return AnchorGrid(x, y, rows, _find_regular_runs(y, _alike(rows)))


def find_anchor_grids(points: Tensor) -> AnchorGrids:
    """:func:`find_anchor_grid` for sets of points, which may lack points of their grid: a gap begins another run.

    Args:
        points: (S, A, 2), S and A >= 1.
    """
    sets, anchors, _ = points.shape
    x, y = (coordinate.flatten().contiguous() for coordinate in points.unbind(-1))  # (S * A,) each
    owner = torch.div(torch.arange(sets * anchors, device=points.device), anchors, rounding_mode="floor")
    rows = _find_regular_runs(x, _without_gaps(x, (_next(y) == y) & (_next(owner) == owner)))
    y, owner = y.index_select(0, rows.start), owner.index_select(0, rows.start)
    blocks = _find_regular_runs(y, _without_gaps(y, _alike(rows) & (_next(owner) == owner)))
    owner = owner.index_select(0, blocks.start)
    count = segment_sum(owner, torch.ones_like(owner), sets)
    return AnchorGrids(AnchorGrid(x, y, rows, blocks), count.cumsum(0) - count, count)


def _alike(rows: RegularRuns) -> Tensor:
    """Whether each row has the same positions in x as the next, (N,) bool."""
    alike = torch.ones_like(rows.origin, dtype=torch.bool)
    for field in (rows.length, rows.origin, rows.step):
        alike = alike & (_next(field) == field)
    return alike


def _without_gaps(position: Tensor, linked: Tensor) -> Tensor:
    """Unlink the members beside a gap, which is a longer step than one before or after it.

    Args:
        position: (N,), N >= 1, of each member.
        linked: (N,) bool, whether a member may share a run with the next; the last entry is ignored.

    Returns:
        (N,) bool.
    """
    step = _next(position) - position
    steps = torch.where(linked & (step > 0), step, math.inf)
    index = torch.arange(position.shape[0], device=position.device)
    beside = torch.minimum(steps.index_select(0, (index - 1).clamp(min=0)), _next(steps))
    return linked & ~(step > beside * (1 + TOLERANCE))


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


def _overlapping_blocks_of_sets(sets: AnchorGrids, boxes: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Pair each box with the blocks of its image's points that it may reach into.

    Args:
        sets: Points of S sets, S is B or 1.
        boxes: (B, M, 4) pixel xyxy; empty where there is none.
        eps: As in :func:`candidate_ranges`.

    Returns:
        Ground truth and block of each pair, ordered by both.
    """
    images, slots, _ = boxes.shape
    index = torch.arange(images * slots, device=boxes.device)
    of_image = torch.div(index, slots, rounding_mode="floor").clamp(max=sets.first_block.shape[0] - 1)
    x1, y1, x2, y2 = (side.flatten() for side in boxes.unbind(-1))
    length = torch.where(x2 > x1, sets.num_blocks.index_select(0, of_image), 0)
    first = sets.first_block.index_select(0, of_image)
    slot, block = expand_ranges(IndexRanges(index, first, extend_for_dummy(length)))
    blocks = sets.grid.blocks
    top = blocks.origin.index_select(0, block)
    bottom = sets.grid.y.index_select(0, blocks.start + blocks.length - 1).index_select(0, block)
    reaches = (bottom - y1.index_select(0, slot) > eps) & (y2.index_select(0, slot) - top > eps)
    found = true_indices(keep_dummy(reaches))
    return slot.index_select(0, found), block.index_select(0, found)

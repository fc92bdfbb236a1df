"""Order in anchor points: rows of points, and blocks of rows.

The points of a feature pyramid come in rows, equal y and x in equal steps, and the rows of a level one below the other
in equal steps. What lies inside a box is then found from its edges alone. Points in any other order are rows of one.
"""

from __future__ import annotations

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

# A member may lie this far, in steps, from where equal steps would put it.
TOLERANCE = 1e-3


class RegularRuns(NamedTuple):
    """Maximal series of members in equal ascending steps, one behind the other.

    Attributes:
        start: (N,) int64, index of each series' first member.
        length: (N,) int64, its members.
        origin: (N,) where the first member lies.
        step: (N,) between neighbours; 1 in a series of one.
    """

    start: Tensor
    length: Tensor
    origin: Tensor
    step: Tensor

    def of(self, index: Tensor) -> RegularRuns:
        """Some of them, again and again."""
        return RegularRuns(*(field.index_select(0, index) for field in self))


class AnchorGrid(NamedTuple):
    """Anchor points with their order.

    Attributes:
        x: (A,) of each point.
        y: (N,) of each row.
        rows: N series of points along x.
        blocks: K series of rows along y.
    """

    x: Tensor
    y: Tensor
    rows: RegularRuns
    blocks: RegularRuns


_remembered: list[tuple[Tensor, AnchorGrid]] = []


def cached_anchor_grid(points: Tensor) -> AnchorGrid:
    """:func:`find_anchor_grid`, which remembers the last answer: from one call to the next, points seldom change.

    Args:
        points: (A, 2), A >= 1.
    """
    if torch.compiler.is_compiling():
        return find_anchor_grid(points)
    for known, grid in _remembered:
        if known.dtype == points.dtype and known.device == points.device and torch.equal(known, points):
            return grid
    grid = find_anchor_grid(points)
    _remembered[:] = [(points.clone(), grid)]
    return grid


def find_anchor_grid(points: Tensor) -> AnchorGrid:
    """Split anchor points into rows, and rows into blocks.

    Args:
        points: (A, 2), A >= 1.
    """
    x, y = points[:, 0].contiguous(), points[:, 1]
    rows = find_regular_runs(x, _next(y) == y)
    y = y.index_select(0, rows.start)
    alike = torch.ones_like(y, dtype=torch.bool)
    for field in (rows.length, rows.origin, rows.step):
        alike = alike & (_next(field) == field)
    return AnchorGrid(x, y, rows, find_regular_runs(y, alike))


def _next(values: Tensor) -> Tensor:
    """Of each the next one; the last one's is the last itself."""
    # Not roll: a tracer that does not know the length cannot write it down.
    index = torch.arange(1, values.shape[0] + 1, device=values.device)
    return values.index_select(0, index.clamp(max=values.shape[0] - 1))


def find_regular_runs(position: Tensor, linked: Tensor) -> RegularRuns:
    """Split members into series.

    Args:
        position: (N,), N >= 1, where each lies.
        linked: (N,) bool, it may be of one series with the next; the last one's is of no account.
    """
    index = torch.arange(position.shape[0], device=position.device)
    step = _next(position) - position  # (N,) to the next; 0 at the end
    joins = linked & (step > 0)
    begins = ~joins.index_select(0, (index - 1).clamp(min=0)) | (index == 0)
    series = begins.cumsum(0) - 1
    first = begins.nonzero().squeeze(1).index_select(0, series)
    own_step = step.index_select(0, first)
    drift = (position - (position.index_select(0, first) + own_step * (index - first))).abs()
    # One member off its place breaks the whole series into single ones: slow for odd inputs, right for all.
    uneven = torch.zeros_like(index).index_add(0, series, (drift > TOLERANCE * own_step.abs()).long()) > 0
    begins = begins | uneven.index_select(0, series)
    start = begins.nonzero().squeeze(1)
    length = torch.zeros_like(start).index_add(0, begins.cumsum(0) - 1, torch.ones_like(index))
    step = torch.where(length > 1, step.index_select(0, start), 1.0)
    return RegularRuns(start, length, position.index_select(0, start), step)


def members_between(
    series: RegularRuns, positions: Tensor, low: Tensor, high: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Which members of a series lie between two bounds.

    Args:
        series: (N,) each.
        positions: Of all members of all series.
        low: (N,).
        high: (N,).
        margin: A member is between when its distance from both is larger.

    Returns:
        Index of the first one, in range also where there is none, and their number, each (N,) int64.
    """
    start, count, origin, step = series
    first = ((low - origin) / step - 2 * TOLERANCE).ceil().clamp(min=0.0).minimum(count).long()
    past = ((high - origin) / step + 2 * TOLERANCE + 1).floor().clamp(min=0.0).minimum(count).long()
    # The estimate may take in one too many on either side; the exact comparison decides.
    last = positions.shape[0] - 1
    first = first + (positions.index_select(0, (start + first).clamp(max=last)) - low <= margin).long()
    past = past - (high - positions.index_select(0, (start + past - 1).clamp(min=0)) <= margin).long()
    return (start + first).clamp(max=last), (past - first).clamp(min=0)


class IndexRanges(NamedTuple):
    """Runs of neighbouring anchors, each inside one box, ordered by ground truth, then by anchor.

    Attributes:
        slot: (S,) int64, b * M + m.
        begin: (S,) int64, its first anchor, b * A + a.
        length: (S,) int64, its anchors, 0 too.
    """

    slot: Tensor
    begin: Tensor
    length: Tensor


class CandidatePairs(NamedTuple):
    """Candidate pairs, ordered by ground truth, then by anchor.

    Attributes:
        slot: (P,) int64, b * M + m.
        anchor: (P,) int64, b * A + a.
    """

    slot: Tensor
    anchor: Tensor


def candidate_ranges(points: Tensor, boxes: Tensor, valid: Tensor, eps: float) -> IndexRanges:
    """Candidates of all images, as runs.

    Args:
        points: (A, 2) pixels, A >= 1.
        boxes: (B, M, 4) pixel xyxy.
        valid: (B, M) bool.
        eps: A point is inside when its distance from every side is larger.
    """
    grid = cached_anchor_grid(points)
    # An empty box has no point inside, also where a list's filler asks for it.
    boxes = torch.where(valid.unsqueeze(-1), boxes, 0.0)
    x1, y1, x2, y2 = (side.flatten() for side in boxes.unbind(-1))  # (B * M,) each
    slot, block = box_row_blocks(grid, y1, y2, x2 > x1, eps)
    low, high = y1.index_select(0, slot), y2.index_select(0, slot)
    begin, length = members_between(grid.blocks.of(block), grid.y, low, high, eps)
    slot, row = expand_ranges(IndexRanges(slot, begin, extend_for_dummy(length)))
    low, high = x1.index_select(0, slot), x2.index_select(0, slot)
    begin, length = members_between(grid.rows.of(row), grid.x, low, high, eps)
    image = torch.div(slot, valid.shape[1], rounding_mode="floor")
    return IndexRanges(slot, begin + image * points.shape[0], extend_for_dummy(length))


def box_row_blocks(grid: AnchorGrid, y1: Tensor, y2: Tensor, valid: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Which box may reach into which block of rows.

    Args:
        lattice: N rows in K blocks.
        y1: (G,) upper edges.
        y2: (G,) lower edges.
        valid: (G,) bool.
        eps: As in :func:`candidate_ranges`.

    Returns:
        Ground truth and block, each (number of crossings,), ordered by both.
    """
    top = grid.blocks.origin  # (K,)
    bottom = grid.y.index_select(0, grid.blocks.start + grid.blocks.length - 1)
    reaches = (bottom - y1[:, None] > eps) & (y2[:, None] - top > eps) & valid[:, None]  # (G, K)
    found, blocks = true_indices(keep_dummy(reaches.flatten())), top.shape[0]
    slot = torch.div(found, blocks, rounding_mode="floor")
    return slot, found - slot * blocks


def expand_ranges(runs: IndexRanges) -> CandidatePairs:
    """The members of runs, one after the other."""
    slot, begin, length = runs
    total = as_size(length.sum())
    run = segment_ids(length, total)
    offset = begin - (length.cumsum(0) - length)
    place = torch.arange(total, device=slot.device)
    return CandidatePairs(slot.index_select(0, run), offset.index_select(0, run) + place)


def count_pairs_per_image(runs: IndexRanges, images: int, slots: int) -> Tensor:
    """How many pairs each image has.

    Returns:
        (B,) int64.
    """
    return segment_sum(torch.div(runs.slot, slots, rounding_mode="floor"), runs.length, images)

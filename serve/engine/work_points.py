"""How many anchor points lie inside boxes, never less than there are, without looking at every pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolo_assigner.serve.tensors.datatypes import Array

CELLS = 64  # along a side, into which points in any order are sorted
TOLERANCE = 5e-4  # half of what the models take as equal steps, so that what they hold for uneven is uneven here


class Grid:
    """The centres of a pyramid's cells.

    Args:
        levels: Rows, columns and stride of each.

    Attributes:
        rows: Of all levels.
    """

    def __init__(self, levels: Sequence[tuple[int, int, int]]) -> None:
        self._levels = levels
        self.rows = sum(rows for rows, _, _ in levels)

    def count(self, corners: Array) -> tuple[int, int]:
        """Pairs of a box and a point inside it, and of a box and a row that it reaches into.

        Args:
            corners: (N, 4) float64 xyxy, x1 < x2 and y1 < y2; infinite too.
        """
        x1, y1, x2, y2 = corners.T
        pairs = runs = 0
        for rows, columns, stride in self._levels:
            across, down = _members(x1, x2, columns, stride), _members(y1, y2, rows, stride)
            pairs, runs = pairs + int((across * down).sum()), runs + int(down.sum())
        return pairs, runs


class Points:
    """Points in any order.

    Args:
        points: (A, 2) x and y; those that are not finite are inside nothing.

    Attributes:
        rows: Series of neighbours with one y and equal steps of x.
    """

    def __init__(self, points: Array) -> None:
        starts = _row_starts(points.astype(np.float32, copy=False))
        self.rows = int(starts.sum())
        self._row_y = np.sort(points[starts, 1].astype(np.float64))
        finite = points[np.isfinite(points).all(axis=1)].astype(np.float64)
        self._low = finite.min(axis=0, initial=np.inf)
        step = (finite.max(axis=0, initial=-np.inf) - self._low) / CELLS
        self._step = np.where(step > 0, step, 1.0)
        places = np.minimum((finite - self._low) / self._step, CELLS - 1).astype(np.int64)
        cells = np.zeros((CELLS, CELLS), np.int64)
        np.add.at(cells, (places[:, 0], places[:, 1]), 1)
        self._below = np.zeros((CELLS + 1, CELLS + 1), np.int64)  # points left of and above each corner
        self._below[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)

    def count(self, corners: Array) -> tuple[int, int]:
        """As of a grid; of pairs, all in the cells that a box reaches into."""
        low, high = np.split(corners, 2, axis=1)
        begin, end = self._cell(low), self._cell(high) + 1
        (left, top), (right, bottom) = begin.T, end.T
        below = self._below
        pairs = below[right, bottom] - below[left, bottom] - below[right, top] + below[left, top]
        runs = self._row_y.searchsorted(high[:, 1], "right") - self._row_y.searchsorted(low[:, 1], "left")
        return int(pairs.sum()), int(runs.sum())

    def _cell(self, positions: Array) -> Array:
        with np.errstate(invalid="ignore"):  # there may be no point, and then its place is infinite
            place = np.nan_to_num((positions - self._low) / self._step)
        cell: Array = place.clip(0, CELLS - 1).astype(np.int64)
        return cell


def _members(low: Array, high: Array, count: int, stride: int) -> Array:
    """How many of the centres of so many cells lie between two bounds, (N,) int64."""
    first = np.ceil(low / stride - 0.5).clip(0, count)
    past = (np.floor(high / stride - 0.5) + 1).clip(0, count)
    members: Array = np.maximum(past - first, 0).astype(np.int64)
    return members


def _row_starts(points: Array) -> Array:
    """Whether each point begins a row, as ``yolo_loss.assignment.anchor_grid`` finds them, (A,) bool."""
    x, y = points.T
    if not len(x):
        return np.zeros(0, np.bool_)
    with np.errstate(invalid="ignore", over="ignore"):
        step = np.append(np.diff(x), np.float32(0))
        begins = np.append(True, ~((np.diff(y) == 0) & (step[:-1] > 0)))
        row = begins.cumsum() - 1
        first = np.flatnonzero(begins)[row]
        drift = np.abs(x - (x[first] + step[first] * (np.arange(len(x)) - first)))
        uneven = np.zeros(int(row[-1]) + 1, np.bool_)
        uneven[row[~(drift <= TOLERANCE * np.abs(step[first]))]] = True
    starts: Array = begins | uneven[row]
    return starts

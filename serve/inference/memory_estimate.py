"""Estimates, before anything is computed, how much memory an engine needs beside inputs and outputs.

The assignment compares every ground truth with anchor points: images x slots x points pairs. A request of a few
megabytes can need more memory than any machine has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from yolo_assigner.export.contract import SPARSE_KINDS, Contract
from yolo_assigner.serve.detection.grid import strides_of
from yolo_assigner.serve.errors import TooLargeError
from yolo_assigner.serve.wire.dtypes import Array

# Bytes of ONNX Runtime's peak memory, measured on one thread with boxes around all points.
PER_PAIR = {"dense": 32.0, "sparse": 120.0}
# explain: lists that are kept to the end, sorted, and sent, with their text where the reply is JSON.
PER_EXPLAINED_PAIR = 500.0
PER_TRUTH_PAIR = 64.0  # explain: comparison of all ground truths of an image with one another
PER_CELL = 1.0  # sparse: tables of B x M x A / 64 rows of 10, when one box has all points and the others few
PER_CROSSING = 12.0  # sparse: comparison of boxes with blocks of rows
PER_LISTED_CROSSING = 64.0  # sparse, where images may have points of their own: the same, as a list
PER_CHOSEN = 12.0  # dense: lists of each ground truth's topk best points
PER_TOPK = 64.0  # sparse: a list with room for topk pairs, whatever boxes there are
# Comparison of regions to ignore with anchor points: growth of VmHWM in one call of a sparse `loss` and a dense
# `loss_grad`, with regions over the whole image of 640 pixels. 18 to 20 for 16 images of 200 regions, and for one of
# 1000; 22 for one of 200, which includes what else the loss holds at that time.
PER_REGION = 22.0
BOXES_AT_ONCE = 2**16
TOPKS = ("topk", "topk2", "topk_one2one", "topk2_one2one")  # hyper-parameters
SIDE_CELLS = 64  # per side of the table in which points of any order are counted
TOLERANCE = 5e-4  # half of the models' tolerance for equal steps, so that no row that they split counts as one here


class MemoryEstimate(NamedTuple):
    """The size of a request and the memory that computing it needs.

    Attributes:
        images: B.
        slots: M.
        anchors: A.
        pairs: Most pairs of a ground truth and an anchor point that are compared.
        nbytes: About so many bytes of memory.
    """

    images: int
    slots: int
    anchors: int
    pairs: int
    nbytes: int


def check_memory(contract: Contract, inputs: Mapping[str, Array], limit: int) -> None:
    """Check that computing a request needs no more memory than is allowed.

    Args:
        contract: Contract of the model.
        inputs: As :func:`yolo_assigner.serve.detection.validate.check_inputs` returns them.
        limit: Bytes.

    Raises:
        TooLargeError: It needs more.
    """
    if memory_bound(contract, inputs) <= limit:
        return
    need = estimate_memory(contract, inputs)
    if need.nbytes > limit:
        raise TooLargeError(
            f"{need.images} images x {need.slots} slots x {need.anchors} anchor points, {need.pairs} pairs to compare, "
            f"would need about {need.nbytes} bytes of memory, the limit is {limit}; send fewer images or slots in one "
            "request, or raise --max-work-bytes"
        )


def memory_bound(contract: Contract, inputs: Mapping[str, Array]) -> int:
    """Bound a request's memory without looking at its boxes, in bytes.

    The bound also holds when merging pads the slots to the next power of two less one.
    """
    images, slots, anchors = _sizes(contract, inputs)
    slots = 1 << slots.bit_length()
    regions = _region_bytes(inputs, anchors)
    if contract.formulation == "dense":
        return regions + _dense_bytes(contract, images * slots, anchors)
    per_cell = _bytes_per_pair(contract) + PER_CELL + _bytes_per_crossing(inputs)
    listed = images * slots * anchors * per_cell + _truth_bytes(contract, images, slots)
    return regions + math.ceil(listed + _topk(contract) * PER_TOPK)


def estimate_memory(contract: Contract, inputs: Mapping[str, Array]) -> MemoryEstimate:
    """Estimate a request's memory from its boxes; never less than it needs."""
    images, slots, anchors = _sizes(contract, inputs)
    cells: int = images * (slots + 1) * anchors
    regions = _region_bytes(inputs, anchors)
    if contract.formulation == "dense":
        nbytes = regions + _dense_bytes(contract, images * (slots + 1), anchors)
        return MemoryEstimate(images, slots, anchors, cells, nbytes)
    least = contract.hyperparameters.get("min_box_side")
    pairs = runs = crossings = 0
    for part, points in _point_indices(contract, inputs):
        boxes, mask = inputs["gt_bboxes"][part].reshape(-1, 4), inputs["mask_gt"][part].reshape(-1)
        for start in range(0, len(boxes), BOXES_AT_ONCE):
            some = slice(start, start + BOXES_AT_ONCE)
            inside, crossed = points.count(_areas(boxes[some][mask[some]], least))
            pairs, runs = pairs + inside, runs + crossed
        crossings += len(inputs["gt_bboxes"][part]) * (slots + 1) * points.rows
    # The sparse assignment lists runs of points first, then expands them to pairs.
    listed = max(pairs, runs) * _bytes_per_pair(contract) + cells * PER_CELL
    listed += crossings * _bytes_per_crossing(inputs)
    listed += _truth_bytes(contract, images, slots + 1)
    nbytes = regions + math.ceil(listed + _topk(contract) * PER_TOPK)
    return MemoryEstimate(images, slots, anchors, pairs, nbytes)


def _dense_bytes(contract: Contract, rows: int, anchors: int) -> int:
    """Bytes for so many rows of the B x M ground truths, each with all anchor points."""
    return math.ceil(rows * (anchors * PER_PAIR["dense"] + min(_topk(contract), anchors) * PER_CHOSEN))


def _bytes_per_pair(contract: Contract) -> float:
    """Bytes for a candidate pair of the sparse assignment."""
    return PER_EXPLAINED_PAIR if contract.kind in SPARSE_KINDS else PER_PAIR["sparse"]


def _bytes_per_crossing(inputs: Mapping[str, Array]) -> float:
    """Bytes for a pair of a box and a row of points."""
    return PER_LISTED_CROSSING if inputs.get("anc_points", np.empty(0)).ndim > 2 else PER_CROSSING  # noqa: PLR2004


def _truth_bytes(contract: Contract, images: int, slots: int) -> float:
    """Bytes to compare the ground truths of each image with one another."""
    return images * slots * slots * PER_TRUTH_PAIR if contract.kind in SPARSE_KINDS else 0.0


def _region_bytes(inputs: Mapping[str, Array], anchors: int) -> int:
    """Bytes to compare regions to ignore, one empty one of each image among them, with all anchor points."""
    if "ignore_bboxes" not in inputs:
        return 0
    images, regions, _ = inputs["ignore_bboxes"].shape
    nbytes: float = images * (regions + 1) * anchors * PER_REGION
    return math.ceil(nbytes)


def _topk(contract: Contract) -> int:
    """The most candidates that a ground truth keeps.

    Two branches of a detector are assigned one after the other, and need no more memory than one: for both 89 bytes a
    pair were measured where they are sparse (98 for one), and 30 where they are dense.
    """
    return max(int(contract.hyperparameters.get(name) or 0) for name in TOPKS)


def _sizes(contract: Contract, inputs: Mapping[str, Array]) -> tuple[int, int, int]:
    images, slots = inputs["gt_bboxes"].shape[:2]
    if "anc_points" in inputs:
        return images, slots, inputs["anc_points"].shape[-2]
    return images, slots, sum(rows * columns for rows, columns, _ in _levels(contract, inputs))


def _point_indices(contract: Contract, inputs: Mapping[str, Array]) -> Iterator[tuple[slice, Grid | Points]]:
    """Each set of points with its images."""
    if "anc_points" not in inputs:
        yield slice(None), Grid(_levels(contract, inputs))
        return
    sets = inputs["anc_points"].reshape(-1, *inputs["anc_points"].shape[-2:])
    for place, points in enumerate(sets):
        yield slice(place, place + 1) if len(sets) > 1 else slice(None), Points(points)


def _levels(contract: Contract, inputs: Mapping[str, Array]) -> list[tuple[int, int, int]]:
    """List rows, columns and stride of each level."""
    strides = strides_of(contract)
    if "images" in inputs:
        height, width = inputs["images"].shape[2:]
        return [(height // stride, width // stride, stride) for stride in strides]
    shapes = [inputs[spec.name].shape[2:] for spec in contract.maps]
    return [(rows, columns, stride) for (rows, columns), stride in zip(shapes, strides, strict=True)]


def _areas(boxes: Array, least: float | None) -> Array:
    """Boxes in which candidates are sought, (N, 4) float64 xyxy: enlarged as the model does, without empty ones."""
    low, high = np.split(boxes.astype(np.float64), 2, axis=1)
    if least is not None:
        small, centre = high - low < least, (low + high) / 2
        low, high = np.where(small, centre - least / 2, low), np.where(small, centre + least / 2, high)
    return np.concatenate((low, high), axis=1)[(high > low).all(axis=1)]


class Grid:
    """Counts the cell centres of a pyramid that lie in boxes.

    Args:
        levels: Rows, columns and stride of each level.

    Attributes:
        rows: Number of rows of all levels.
    """

    def __init__(self, levels: Sequence[tuple[int, int, int]]) -> None:
        self._levels = levels
        self.rows = sum(rows for rows, _, _ in levels)

    def count(self, corners: Array) -> tuple[int, int]:
        """Count the pairs of a box and a point inside it, and of a box and a row that it reaches into.

        Args:
            corners: (N, 4) float64 xyxy, x1 < x2 and y1 < y2; may be infinite.
        """
        x1, y1, x2, y2 = corners.T
        pairs = runs = 0
        for rows, columns, stride in self._levels:
            across, down = _members(x1, x2, columns, stride), _members(y1, y2, rows, stride)
            pairs, runs = pairs + int((across * down).sum()), runs + int(down.sum())
        return pairs, runs


class Points:
    """Bounds how many points of any order lie in boxes.

    Args:
        points: (A, 2) x and y; no box contains a point that is not finite.

    Attributes:
        rows: Number of regular runs: neighbours with one y and equal steps of x.
    """

    def __init__(self, points: Array) -> None:
        starts = _row_starts(points.astype(np.float32, copy=False))
        self.rows = int(starts.sum())
        self._row_y = np.sort(points[starts, 1].astype(np.float64))
        finite = points[np.isfinite(points).all(axis=1)].astype(np.float64)
        self._low = finite.min(axis=0, initial=np.inf)
        step = (finite.max(axis=0, initial=-np.inf) - self._low) / SIDE_CELLS
        self._step = np.where(step > 0, step, 1.0)
        places = np.minimum((finite - self._low) / self._step, SIDE_CELLS - 1).astype(np.int64)
        cells = np.zeros((SIDE_CELLS, SIDE_CELLS), np.int64)
        np.add.at(cells, (places[:, 0], places[:, 1]), 1)
        self._below = np.zeros((SIDE_CELLS + 1, SIDE_CELLS + 1), np.int64)  # points left of and above each corner
        self._below[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)

    def count(self, corners: Array) -> tuple[int, int]:
        """As :meth:`Grid.count`, but with all points of the table's cells that a box reaches into."""
        low, high = np.split(corners, 2, axis=1)
        begin, end = self._cell(low), self._cell(high) + 1
        (left, top), (right, bottom) = begin.T, end.T
        below = self._below
        pairs = below[right, bottom] - below[left, bottom] - below[right, top] + below[left, top]
        runs = self._row_y.searchsorted(high[:, 1], "right") - self._row_y.searchsorted(low[:, 1], "left")
        return int(pairs.sum()), int(runs.sum())

    def _cell(self, positions: Array) -> Array:
        with np.errstate(invalid="ignore"):  # without points, the step to the lowest one is infinite
            place = np.nan_to_num((positions - self._low) / self._step)
        cell: Array = place.clip(0, SIDE_CELLS - 1).astype(np.int64)
        return cell


def _members(low: Array, high: Array, count: int, stride: int) -> Array:
    """Count how many of a row's cell centres lie between two bounds, (N,) int64."""
    first = np.ceil(low / stride - 0.5).clip(0, count)
    past = (np.floor(high / stride - 0.5) + 1).clip(0, count)
    members: Array = np.maximum(past - first, 0).astype(np.int64)
    return members


def _row_starts(points: Array) -> Array:
    """Whether each point begins a regular run, (A,) bool.

    The numpy twin of ``yolo_loss.assignment.anchor_grid``: the server loads no torch.
    """
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

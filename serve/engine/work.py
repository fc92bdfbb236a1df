"""How much memory an engine will need beside inputs and outputs, judged before anything is computed.

The assignment compares ground truths with anchor points, and their number is that of images times slots times points: a
request of a few megabytes can ask for more than any machine has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.engine.work_points import Grid, Points
from yolo_assigner.serve.errors import TooLargeError
from yolo_assigner.serve.tensors.datatypes import Array
from yolo_assigner.serve.tensors.grid import strides_of

# Bytes of ONNX Runtime's peak memory, measured with boxes around all points, on one thread.
PER_PAIR = {"dense": 32.0, "sparse": 120.0}
PER_CELL = 1.0  # of the sparse tables of B x M x A / 64 rows of 10, when one box has all points and the others few
PER_CROSSING = 12.0  # of the sparse comparison of boxes with blocks of rows
PER_CHOSEN = 12.0  # of the dense lists of each ground truth's topk best
PER_TOPK = 64.0  # of the sparse list that has room for topk pairs whatever boxes there are
MOST_PER_CELL = PER_PAIR["sparse"] + PER_CELL + PER_CROSSING
BOXES_AT_ONCE = 2**16


class Work(NamedTuple):
    """What a request asks for.

    Attributes:
        images: B.
        slots: M.
        anchors: A.
        pairs: Of a ground truth and an anchor point that are compared, at most.
        nbytes: Memory for it, about.
    """

    images: int
    slots: int
    anchors: int
    pairs: int
    nbytes: int


def check_work(contract: Contract, inputs: Mapping[str, Array], limit: int) -> None:
    """Refuse what would need too much memory.

    Args:
        contract: The model's.
        inputs: As :func:`yolo_assigner.serve.tensors.validate.check_inputs` returns them.
        limit: Bytes.

    Raises:
        TooLargeError: It would.
    """
    if most_work(contract, inputs) <= limit:
        return
    work = work_of(contract, inputs)
    if work.nbytes > limit:
        raise TooLargeError(
            f"{work.images} images x {work.slots} slots x {work.anchors} anchor points, {work.pairs} pairs to compare, "
            f"would need about {work.nbytes} bytes of memory, the limit is {limit}; send fewer images or slots in one "
            "request, or raise --max-work-bytes"
        )


def most_work(contract: Contract, inputs: Mapping[str, Array]) -> int:
    """Bytes that are enough whatever boxes there are, also when slots are padded to the next power of two less one."""
    images, slots, anchors = _sizes(contract, inputs)
    slots = 1 << slots.bit_length()
    if contract.formulation == "dense":
        return _dense_bytes(contract, images * slots, anchors)
    return math.ceil(images * slots * anchors * MOST_PER_CELL + _topk(contract) * PER_TOPK)


def work_of(contract: Contract, inputs: Mapping[str, Array]) -> Work:
    """What a request asks for."""
    images, slots, anchors = _sizes(contract, inputs)
    cells: int = images * (slots + 1) * anchors
    if contract.formulation == "dense":
        return Work(images, slots, anchors, cells, _dense_bytes(contract, images * (slots + 1), anchors))
    where = _where(contract, inputs)
    boxes, mask = inputs["gt_bboxes"].reshape(-1, 4), inputs["mask_gt"].reshape(-1)
    pairs = runs = 0
    for start in range(0, len(boxes), BOXES_AT_ONCE):
        part = slice(start, start + BOXES_AT_ONCE)
        corners = _areas(boxes[part][mask[part]], contract.hyperparameters.get("min_box_side"))
        inside, crossed = where.count(corners)
        pairs, runs = pairs + inside, runs + crossed
    crossings: int = images * (slots + 1) * where.rows
    # Runs of points are listed first, then written out as pairs.
    nbytes = max(pairs, runs) * PER_PAIR["sparse"] + cells * PER_CELL + crossings * PER_CROSSING
    return Work(images, slots, anchors, pairs, math.ceil(nbytes + _topk(contract) * PER_TOPK))


def _dense_bytes(contract: Contract, rows: int, anchors: int) -> int:
    """Memory for so many rows of B x M, each with all anchor points."""
    return math.ceil(rows * (anchors * PER_PAIR["dense"] + min(_topk(contract), anchors) * PER_CHOSEN))


def _topk(contract: Contract) -> int:
    """Most pairs that a ground truth may have room for, first or in the end."""
    return max(int(contract.hyperparameters[name] or 0) for name in ("topk", "topk2"))


def _sizes(contract: Contract, inputs: Mapping[str, Array]) -> tuple[int, int, int]:
    images, slots = inputs["gt_bboxes"].shape[:2]
    if "anc_points" in inputs:
        return images, slots, len(inputs["anc_points"])
    return images, slots, sum(rows * columns for rows, columns, _ in _levels(contract, inputs))


def _where(contract: Contract, inputs: Mapping[str, Array]) -> Grid | Points:
    return Points(inputs["anc_points"]) if "anc_points" in inputs else Grid(_levels(contract, inputs))


def _levels(contract: Contract, inputs: Mapping[str, Array]) -> list[tuple[int, int, int]]:
    """Rows, columns and stride of each level."""
    strides = strides_of(contract)
    if "images" in inputs:
        height, width = inputs["images"].shape[2:]
        return [(height // stride, width // stride, stride) for stride in strides]
    shapes = [inputs[spec.name].shape[2:] for spec in contract.maps]
    return [(rows, columns, stride) for (rows, columns), stride in zip(shapes, strides, strict=True)]


def _areas(boxes: Array, least: float | None) -> Array:
    """Where candidates are sought, (N, 4) float64: the boxes, enlarged where the model does so, that are any."""
    low, high = np.split(boxes.astype(np.float64), 2, axis=1)
    if least is not None:
        small, centre = high - low < least, (low + high) / 2
        low, high = np.where(small, centre - least / 2, low), np.where(small, centre + least / 2, high)
    return np.concatenate((low, high), axis=1)[(high > low).all(axis=1)]

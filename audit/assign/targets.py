"""Files of targets: one row an image, with lists of its objects and of the anchors that learn them.

Background is not written, and neither are dense scores: both follow from the rows. :func:`read_targets` gives the full
targets, equal to the bit to those inside of ``DetectionLoss``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_assigner.audit.parquet import Column, read_metadata, schema_of, write_parquet
from yolo_loss.assignment.targets import look_up_targets
from yolo_loss.structures import Assignment, AssignmentResult, GroundTruth

METADATA = b"yolo_assigner.targets"

COLUMNS = (
    Column("image", "string", "name of the picture"),
    Column("height", "int32", "of the detector's input, pixels"),
    Column("width", "int32", "likewise"),
    Column("num_anchors", "int32", "anchors of all levels together, A"),
    Column("num_classes", "int32", "classes, C"),
    Column("labels", "int32[]", "class of each object, in the order of the picture's labels"),
    Column("x1", "float[]", "left side of each object's box in the detector's input, pixels"),
    Column("y1", "float[]", "top side, pixels"),
    Column("x2", "float[]", "right side, pixels"),
    Column("y2", "float[]", "bottom side, pixels"),
    Column("anchors", "int32[]", "anchors that learn an object, ascending, of 0 to A - 1"),
    Column("slots", "int32[]", "the object that each of them learns: its place in the lists above, counted from 0"),
    Column("scores", "float[]", "normalized alignment score of each: its target score for the object's class"),
)
SIDES = ("x1", "y1", "x2", "y2")


class Targets(NamedTuple):
    """Targets of B images of one size.

    Attributes:
        names: Of the B pictures.
        ground_truth: Padded, M slots: the largest count among the images.
        assignment: Compact, each field (B, A).
        num_classes: C.
        image_size: Height and width in pixels.
    """

    names: tuple[str, ...]
    ground_truth: GroundTruth
    assignment: Assignment
    num_classes: int
    image_size: tuple[int, int]

    def full(self) -> AssignmentResult:
        """The five targets as ``TaskAlignedAssigner`` gives them, with dense scores (B, A, C)."""
        return look_up_targets(self.assignment, self.ground_truth, self.num_classes)


def schema() -> pa.Schema:
    """Return the schema; every field says what it means."""
    return schema_of(COLUMNS)


def write_targets(path: Path, targets: Targets, counts: Tensor, facts: dict[str, Any]) -> None:
    """Write a file, which appears complete or not at all.

    Args:
        path: The file.
        targets: What it holds.
        counts: (B,) int64, objects of each image.
        facts: Its metadata, plain types.

    Raises:
        OSError: It cannot be written.
    """
    images, slots = targets.ground_truth.gt_labels.shape[:2]
    used = torch.arange(slots) < counts[:, None]  # (B, M)
    boxes = targets.ground_truth.gt_bboxes[used].numpy()
    foreground = targets.assignment.fg_mask
    ends = foreground.sum(dim=1)
    height, width = targets.image_size
    anchors = foreground.shape[1]
    constant = (np.full(images, value, np.int32) for value in (height, width, anchors, targets.num_classes))
    columns = [
        pa.array(targets.names, pa.string()),
        *map(pa.array, constant),
        _lists(targets.ground_truth.gt_labels.squeeze(-1)[used].int().numpy(), counts),
        *(_lists(np.ascontiguousarray(boxes[:, side]), counts) for side in range(len(SIDES))),
        _lists(foreground.nonzero()[:, 1].int().numpy(), ends),
        _lists(targets.assignment.target_gt_idx[foreground].int().numpy(), ends),
        _lists(targets.assignment.target_weights[foreground].numpy(), ends),
    ]
    write_parquet(path, pa.Table.from_arrays(columns, schema=schema()), METADATA, facts)


def read_target_facts(path: Path) -> dict[str, Any] | None:
    """Read the metadata of a file of targets; None: there is no such file, or it is another one."""
    return read_metadata(path, METADATA)


def read_targets(path: Path) -> Targets:
    """Read a file of targets.

    Args:
        path: A file that ``yolo-assigner assign`` wrote.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file of targets, or as :func:`targets_of`.
    """
    try:
        return targets_of(pq.read_table(path, partitioning=None))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read ({error}); give a file that yolo-assigner assign wrote") from error


def targets_of(table: pa.Table) -> Targets:
    """Convert rows, for example some of a file's or of several files', to tensors.

    Args:
        table: With the columns ``COLUMNS``, at least one row.

    Raises:
        ValueError: A column is missing, there is no row, or the images have different sizes or numbers of anchors or
            classes.
    """
    missing = [column.name for column in COLUMNS if column.name not in table.column_names]
    if missing:
        raise ValueError(f"the table lacks {', '.join(missing)}; give rows that yolo-assigner assign wrote")
    height, width, anchors, classes = (_only(table, name) for name in ("height", "width", "num_anchors", "num_classes"))
    image, slot, shape = _places(table, "labels")
    labels = torch.zeros((*shape, 1), dtype=torch.long)
    labels[image, slot, 0] = _values(table, "labels").long()
    boxes = torch.zeros((*shape, len(SIDES)))
    for side, name in enumerate(SIDES):
        boxes[image, slot, side] = _values(table, name)
    truth = GroundTruth(labels, boxes, boxes.sum(dim=-1, keepdim=True) > 0)
    names = tuple(table.column("image").to_pylist())
    return Targets(names, truth, _assignment(table, anchors), classes, (height, width))


def _assignment(table: pa.Table, anchors: int) -> Assignment:
    image, *_ = _places(table, "anchors")
    anchor = _values(table, "anchors").long()
    slot = torch.zeros((table.num_rows, anchors), dtype=torch.long)
    slot[image, anchor] = _values(table, "slots").long()
    weights = torch.zeros((table.num_rows, anchors))
    weights[image, anchor] = _values(table, "scores")
    foreground = torch.zeros((table.num_rows, anchors), dtype=torch.bool)
    foreground[image, anchor] = True
    return Assignment(foreground, slot, weights)


class _Places(NamedTuple):
    """Row and place in its list of each value, (N,), and rows with the length of the longest list."""

    row: Tensor
    place: Tensor
    shape: tuple[int, int]


def _places(table: pa.Table, name: str) -> _Places:
    lengths = torch.from_numpy(pc.list_value_length(table.column(name)).to_numpy().astype(np.int64))
    row = torch.arange(len(lengths)).repeat_interleave(lengths)
    place = torch.arange(len(row)) - (lengths.cumsum(0) - lengths)[row]
    return _Places(row, place, (len(lengths), int(lengths.max())))


def _values(table: pa.Table, name: str) -> Tensor:
    return torch.from_numpy(pc.list_flatten(table.column(name)).to_numpy().copy())


def _only(table: pa.Table, name: str) -> int:
    found: Sequence[int] = pc.unique(table.column(name)).to_pylist()
    if len(found) != 1:
        raise ValueError(
            f"{name} is {', '.join(map(str, found)) or 'missing, for there is no row'}; give the rows of one or more "
            "images of one size and one detector"
        )
    return int(found[0])


def _lists(values: NDArray[Any], lengths: Tensor) -> pa.Array:
    """Lists of the given lengths, one after another."""
    offsets = np.concatenate(([0], lengths.cumsum(0).numpy())).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))

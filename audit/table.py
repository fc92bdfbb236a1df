"""The Parquet table: one row a ground truth, one file a shard, and what a shard says besides in the file's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from yolo_assigner.audit.parquet import Column, read_metadata, schema_of, write_parquet
from yolo_assigner.audit.structures import BadFile, ShardFacts

METADATA = b"yolo_assigner.audit"
ROWS_AT_ONCE = 4096

COLUMNS = (
    Column("image", "string", "name of the picture, relative to the set's folder of pictures"),
    Column("slot", "int32", "place of the object in its picture's labels, counted from 0"),
    Column("label", "int32", "class"),
    Column("x1", "float", "left side of the box in the detector's input, pixels"),
    Column("y1", "float", "top side, pixels"),
    Column("x2", "float", "right side, pixels"),
    Column("y2", "float", "bottom side, pixels"),
    Column("label_x", "float", "centre x in the picture, as a share of its width"),
    Column("label_y", "float", "centre y, as a share of its height"),
    Column("label_w", "float", "width, as a share of the picture's"),
    Column("label_h", "float", "height, as a share of the picture's"),
    Column("reason", "string", "assigned, or why not: invalid, outside, no_anchor, no_overlap, no_score, contested"),
    Column("sentence", "string", "the reason in words"),
    Column("remedy", "string", "what would help, and how far; empty where nothing has to"),
    Column("stride", "float", "stride of the level with the best candidate; null without one"),
    Column("num_candidates", "int32[]", "anchors of each level whose centre lies inside the (enlarged) box"),
    Column("num_chosen", "int32", "candidates that entered the top k"),
    Column("num_lost", "int32", "chosen ones that another object took"),
    Column("lost_to", "int32", "slot of the object that took most; null if none"),
    Column("num_assigned", "int32", "anchors that learn the object"),
    Column("weight_sum", "float", "sum of their normalized alignment scores"),
    Column("best_iou", "float", "largest IoU u among the candidates' predicted boxes"),
    Column("best_score", "float", "largest probability s of the object's class among them"),
    Column("best_metric", "float", "largest metric t = s^alpha u^beta among them"),
    Column("best_iou_anchor", "int32", "anchor of best_iou; null if that is 0"),
    Column("best_score_anchor", "int32", "anchor of best_score; likewise"),
    Column("best_metric_anchor", "int32", "anchor of best_metric; likewise"),
    Column("nearest_distance", "float", "pixels from the box to the nearest anchor's centre; 0 with candidates"),
    Column("helping_side", "float", "the smallest min_box_side that gives it a candidate; 0 where it has one"),
    Column("clipped_share", "float", "share of its anchors' sides that reg_max cannot express"),
    Column("duplicate_of", "int32", "slot of an object with IoU above 0.95; null if none"),
    Column("weak", "bool", "weight_sum is below 0.1 of the picture's median"),
    Column("box_sum", "float", "its part of the box loss, without gain, not normalised"),
    Column("cls_sum", "float", "its part of the class loss, likewise"),
    Column("dfl_sum", "float", "its part of the distribution loss (l1 with reg_max 1), likewise"),
    Column("side_candidates", "int32", "its candidates with the min_box_side that was tried"),
    Column("side_assigned", "int32", "its anchors with that, from the same predictions"),
    Column("larger_candidates", "int32", "its candidates with the larger input that was tried"),
    Column("finer_candidates", "int32", "its candidates with the finer level that was tried, all levels together"),
)


def schema() -> pa.Schema:
    """Return the table's schema; every field says what it means."""
    return schema_of(COLUMNS)


def write_shard(target: Path, rows: Sequence[dict[str, Any]], facts: ShardFacts) -> None:
    """Write a shard's file, which appears complete or not at all.

    Args:
        target: The file.
        rows: Values by column.
        facts: What else there is to say.
    """
    table = pa.Table.from_pylist(list(rows), schema=schema())
    write_parquet(target, table, METADATA, {**facts._asdict(), "bad": [bad._asdict() for bad in facts.bad]})


def read_facts(path: Path) -> ShardFacts | None:
    """Read what a shard's file says besides its rows; None: there is no such file, or it is none of an audit."""
    try:
        content = read_metadata(path, METADATA) or {}
        bad = tuple(BadFile(**one) for one in content.pop("bad"))
        return ShardFacts(bad=bad, **content)
    except (KeyError, TypeError):
        return None


def read_rows(paths: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Read rows of shards in their order, a few thousand at a time.

    Args:
        paths: The files.
        columns: Those that are needed; None: all.
    """
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()

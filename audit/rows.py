"""Rows of the table, from a head's maps and a batch of ground truth."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from yolo_assigner.audit.structures import Changes
from yolo_assigner.audit.what_if import Tried, choose, count_candidates, iou_ceiling, larger_grid
from yolo_loss.criterion import DetectionLoss
from yolo_loss.explain import Explanation, Reason, explain_document, explain_loss
from yolo_loss.explain.document import TRUTH_FIELDS
from yolo_loss.predictions import RawOutput

# Columns that the explanation's document has under the same name.
SAME = ("slot", "label", "reason", "sentence", "remedy", *TRUTH_FIELDS)


class Picture(NamedTuple):
    """What rows say of a picture.

    Attributes:
        name: Its name.
        boxes: (N, 4) its labels' boxes, normalised by its size: centre x, centre y, width, height.
    """

    name: str
    boxes: Tensor


class Tables(NamedTuple):
    """Rows of a batch.

    Attributes:
        rows: Values by column, in the order of pictures and of their labels.
        parameters: The criterion's hyper-parameters.
        tried: What was tried beside.
    """

    rows: list[dict[str, Any]]
    parameters: dict[str, Any]
    tried: Tried


class _Counts(NamedTuple):
    """What was tried beside, (B, M) each as nested lists, by the names of the columns."""

    side_candidates: list[list[int]]
    side_assigned: list[list[int]]
    larger_candidates: list[list[int]]
    finer_candidates: list[list[int]]


def explain_rows(
    criterion: DetectionLoss,
    preds: RawOutput,
    batch: Mapping[str, Any],
    pictures: Sequence[Picture],
    changes: Changes = Changes(),  # noqa: B008  (immutable)
) -> Tables:
    """Explain a batch, also with a larger ``min_box_side``, a larger input and a finer level.

    Args:
        criterion: Its hyper-parameters are used.
        preds: The head's output, as ``DetectionLoss`` takes it.
        batch: The ground truth, as ``DetectionLoss`` takes it.
        pictures: B, in the order of ``batch_idx``.
        changes: What to try; by default it is chosen from the strides.

    Raises:
        ValueError: As ``DetectionLoss``.
    """
    document = explain_document(criterion, preds, batch, pairs=False)
    height, width = document["imgsz"]
    tried = choose(changes, criterion.strides, max(height, width), criterion.assigner.params.min_box_side)
    larger_side = explain_loss(with_min_box_side(criterion, tried.min_box_side), preds, batch)
    counts = _try(criterion, larger_side, document, tried)._asdict()
    rows = [
        _row(truth, picture, document["levels"], {name: column[image][slot] for name, column in counts.items()})
        for image, picture in enumerate(pictures)
        for slot, truth in enumerate(document["images"][image]["ground_truths"])
    ]
    for row in rows:
        if row["reason"] == Reason.NO_ANCHOR.word:
            row["remedy"] += _ceiling(row, criterion, (int(height), int(width)))
    return Tables(rows, document["parameters"], tried)


def with_min_box_side(criterion: DetectionLoss, side: float) -> DetectionLoss:
    """Return a criterion that assigns like another one, but for its ``min_box_side``."""
    params = criterion.assigner.params._replace(min_box_side=side)
    return DetectionLoss(
        criterion.num_classes, criterion.strides, criterion.reg_max, class_loss=criterion.class_loss, **params._asdict()
    )


def _try(criterion: DetectionLoss, larger_side: Explanation, document: dict[str, Any], tried: Tried) -> _Counts:
    params, size = criterion.assigner.params, (int(document["imgsz"][0]), int(document["imgsz"][1]))
    boxes, valid = larger_side.ground_truth.gt_bboxes.cpu(), larger_side.ground_truth.mask_gt.squeeze(-1).cpu()
    flat = boxes.flatten(0, 1)  # (B M, 4)
    grown, grown_size = larger_grid(flat, size, tried)
    in_larger = count_candidates(grown, grown_size, criterion.strides, params.eps, params.min_box_side)
    finer = (tried.stride, *criterion.strides)
    in_finer = count_candidates(flat, size, finer, params.eps, params.min_box_side)
    columns = (
        larger_side.truths.num_candidates.sum(dim=2),
        larger_side.truths.num_assigned,
        *(found.sum(dim=1).view_as(valid) * valid for found in (in_larger, in_finer)),
    )
    return _Counts(*(column.tolist() for column in columns))


def _row(
    truth: dict[str, Any], picture: Picture, levels: list[dict[str, Any]], counts: Mapping[str, int]
) -> dict[str, Any]:
    boxes = dict(zip(("x1", "y1", "x2", "y2"), truth["bbox"], strict=True))
    label = dict(zip(("label_x", "label_y", "label_w", "label_h"), picture.boxes[truth["slot"]].tolist(), strict=True))
    # With R = 1 the third term is called l1.
    sums = {f"{term.replace('l1', 'dfl')}_sum": value for term, value in truth["loss"].items() if term != "total"}
    same = {name: truth[name] for name in SAME}
    return {"image": picture.name, **boxes, **label, **same, **sums, "stride": _stride(truth, levels), **counts}


def _ceiling(row: Mapping[str, Any], criterion: DetectionLoss, size: tuple[int, int]) -> str:
    """What ``min_box_side`` cannot give: its anchors lie outside of the box, and so does a side of each prediction."""
    box = [row[name] for name in ("x1", "y1", "x2", "y2")]
    most = iou_ceiling(box, size, criterion.strides, criterion.assigner.params.eps, row["helping_side"])
    return (
        f" Its IoU can then be {most:.2f} at most, for the candidate lies outside of the box." if 0 < most < 1 else ""
    )


def _stride(truth: dict[str, Any], levels: list[dict[str, Any]]) -> float | None:
    """Stride of the level with the best candidate: by metric, else by IoU, else the level with most candidates."""
    anchor = truth["best_metric_anchor"]
    anchor = truth["best_iou_anchor"] if anchor is None else anchor
    if anchor is not None:
        level = bisect_right([one["first_anchor"] for one in levels], anchor) - 1
    elif any(truth["num_candidates"]):
        level = truth["num_candidates"].index(max(truth["num_candidates"]))
    else:
        return None
    return float(levels[level]["stride"])

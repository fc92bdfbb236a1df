"""The forms in which heads hand over their output, brought into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from yolo_loss.anchors import compute_dtype, make_anchors
from yolo_loss.results import Level, Predictions
from yolo_loss.validate import check_floating, check_shape

# A list of raw maps, a tuple whose second entry is one of the other forms, or a dict with boxes, scores and feats.
RawOutput = Sequence[Any] | Mapping[str, Any]


def join_predictions(preds: RawOutput, strides: Sequence[float], num_classes: int, reg_max: int) -> Predictions:
    """Join the levels of a head's output.

    Args:
        preds: L maps (B, 4R + C, H_i, W_i); or a tuple (anything, such a list), as a head in evaluation mode gives;
            or a dict of ``boxes`` (B, 4R, A), ``scores`` (B, C, A) and ``feats``, L maps of which only the shape is
            read, as heads since 8.4 give.
        strides: L strides in pixels.
        num_classes: C.
        reg_max: R.

    Returns:
        The same numbers in one form; no map is copied.

    Raises:
        ValueError: None of the forms, or shapes that do not belong together.
    """
    if isinstance(preds, tuple) and preds and isinstance(preds[-1], Mapping | list | tuple):
        preds = preds[-1]
    if isinstance(preds, Mapping):
        return _from_dict(preds, strides, num_classes, reg_max)
    maps = _check_maps(preds, strides, 4 * reg_max + num_classes, "4R + C")
    flat = [level.flatten(2) for level in maps]  # (B, 4R + C, A_i)
    return _with_anchors([Level(level, level) for level in flat], maps, strides, num_classes, reg_max)


def _from_dict(preds: Mapping[str, Any], strides: Sequence[float], num_classes: int, reg_max: int) -> Predictions:
    missing = [key for key in ("boxes", "scores", "feats") if key not in preds]
    if missing:
        raise ValueError(f"preds is a dict without {', '.join(missing)}; it needs boxes, scores and feats")
    feats = _check_maps(preds["feats"], strides, None, "any channels")
    boxes, scores = preds["boxes"], preds["scores"]
    images, anchors = feats[0].shape[0], sum(level.shape[2] * level.shape[3] for level in feats)
    check_shape("preds['boxes']", boxes, (images, 4 * reg_max, anchors), "(B, 4R, A), B and A as in the feats")
    check_shape("preds['scores']", scores, (images, num_classes, anchors), "(B, C, A), B and A as in the feats")
    check_floating("preds['boxes']", boxes)
    check_floating("preds['scores']", scores)
    return _with_anchors([Level(boxes, scores)], feats, strides, num_classes, reg_max)


def _check_maps(maps: Any, strides: Sequence[float], channels: int | None, meaning: str) -> list[Tensor]:
    if not isinstance(maps, Sequence) or not all(isinstance(level, Tensor) for level in maps):
        raise ValueError(
            f"preds is {type(maps).__name__}; give a list of maps, a tuple (y, maps), or a dict of tensors"
        )
    if len(maps) != len(strides):
        raise ValueError(f"preds has {len(maps)} maps, but there are {len(strides)} strides; give one map per stride")
    images = maps[0].shape[0]
    for index, level in enumerate(maps):
        check_shape(f"preds[{index}]", level, (images, channels, None, None), f"(B, {meaning}, H, W), one B")
        check_floating(f"preds[{index}]", level)
    return list(maps)


def _with_anchors(
    levels: list[Level], maps: Sequence[Tensor], strides: Sequence[float], num_classes: int, reg_max: int
) -> Predictions:
    anchor_points, stride_of_anchor = make_anchors(maps, strides)
    dtype = compute_dtype(*(source for level in levels for source in level))
    grid_size = (maps[0].shape[2], maps[0].shape[3])
    return Predictions(
        tuple(levels), anchor_points.to(dtype), stride_of_anchor.to(dtype), grid_size, reg_max, num_classes
    )

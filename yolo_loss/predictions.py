"""Conversion of the output formats of detection heads into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_loss.anchors import cached_anchors, compute_dtype
from yolo_loss.checks import MAP_LAYOUT, check_floating, check_maps, check_pyramid, check_shape, map_list
from yolo_loss.structures import Level, Predictions
from yolo_loss.validate import as_tensor

# A list of raw maps, a tuple whose second entry is one of the other forms, or a dict with boxes, scores and feats.
RawOutput = Sequence[Any] | Mapping[str, Any]
# ``make_anchors``, or another function of the same arguments and result.
AnchorMaker = Callable[[Sequence[Tensor], Sequence[float]], tuple[Tensor, Tensor]]


def join_predictions(
    preds: RawOutput,
    strides: Sequence[float],
    num_classes: int,
    reg_max: int,
    anchors: AnchorMaker = cached_anchors,
) -> Predictions:
    """Convert a head's output, whose levels may be joined or not.

    Args:
        preds: L maps (B, 4R + C, H_i, W_i), tensors or arrays; or a tuple (anything, such a list), as a head in
            evaluation mode gives; or a dict of ``boxes`` (B, 4R, A), ``scores`` (B, C, A) and ``feats``, L maps of
            which only the shape is read, as heads since 8.4 give.
        strides: L strides in pixels.
        num_classes: C.
        reg_max: R.
        anchors: Makes the anchor points.

    Returns:
        The predictions; no map is copied.

    Raises:
        ValueError: The format is unknown, shapes do not belong together, or the maps are not the levels of one image
            in the order of the strides.
    """
    if isinstance(preds, tuple) and preds and isinstance(preds[-1], Mapping | list | tuple):
        preds = preds[-1]
    if isinstance(preds, Mapping):
        return _from_dict(preds, strides, num_classes, reg_max, anchors)
    maps = _check_maps(preds, strides, 4 * reg_max + num_classes, MAP_LAYOUT)
    flat = [level.flatten(2) for level in maps]  # (B, 4R + C, A_i)
    return _with_anchors([Level(level, level) for level in flat], maps, strides, num_classes, reg_max, anchors)


def join_map_lists(
    class_maps: Any,
    box_maps: Any,
    strides: Sequence[float],
    num_classes: int,
    reg_max: int,
    anchors: AnchorMaker = cached_anchors,
) -> Predictions:
    """Convert the output of a head that gives classes and boxes in two lists of maps.

    Args:
        class_maps: L maps (B, C, H_i, W_i) of class logits.
        box_maps: L maps (B, 4R, H_i, W_i).
        strides: L strides in pixels.
        num_classes: C.
        reg_max: R.
        anchors: Makes the anchor points.

    Returns:
        The predictions; no map is copied.

    Raises:
        ValueError: Shapes do not belong together, or the maps are not the levels of one image in the order of the
            strides.
    """
    classes = _check_maps(class_maps, strides, num_classes, "(B, C, H, W)", "class_maps")
    boxes = _check_maps(box_maps, strides, 4 * reg_max, "(B, 4R, H, W)", "box_maps")
    for place, (one, other) in enumerate(zip(classes, boxes, strict=True)):
        size = one.shape[0], None, *one.shape[2:]
        check_shape(f"box_maps[{place}]", other, size, f"B, H and W as in class_maps[{place}]")
    levels = [Level(box.flatten(2), cls.flatten(2)) for cls, box in zip(classes, boxes, strict=True)]
    return _with_anchors(levels, classes, strides, num_classes, reg_max, anchors)


def _from_dict(
    preds: Mapping[str, Any], strides: Sequence[float], num_classes: int, reg_max: int, make: AnchorMaker
) -> Predictions:
    missing = [key for key in ("boxes", "scores", "feats") if key not in preds]
    if missing:
        raise ValueError(f"preds is a dict without {', '.join(missing)}; it needs boxes, scores and feats")
    feats = _check_maps(preds["feats"], strides, None, "(B, any channels, H, W)")
    boxes, scores = (as_tensor(f"preds['{name}']", preds[name], np.float32) for name in ("boxes", "scores"))
    images, anchors = feats[0].shape[0], sum(level.shape[2] * level.shape[3] for level in feats)
    check_shape("preds['boxes']", boxes, (images, 4 * reg_max, anchors), "(B, 4R, A), B and A as in the feats")
    check_shape("preds['scores']", scores, (images, num_classes, anchors), "(B, C, A), B and A as in the feats")
    check_floating("preds['boxes']", boxes)
    check_floating("preds['scores']", scores)
    return _with_anchors([Level(boxes, scores)], feats, strides, num_classes, reg_max, make)


def _check_maps(
    feats: Any, strides: Sequence[float], channels: int | None, layout: str, name: str = "feats"
) -> list[Tensor]:
    maps = {f"{name}[{level}]": feat for level, feat in enumerate(map_list(feats, name))}
    named = {level: as_tensor(level, feat, np.float32) for level, feat in maps.items()}
    check_maps(named, strides, channels, layout)
    if not torch.compiler.is_compiling():  # exported graphs accept any sizes
        check_pyramid(named, strides)
    return list(named.values())


def _with_anchors(
    levels: list[Level],
    maps: Sequence[Tensor],
    strides: Sequence[float],
    num_classes: int,
    reg_max: int,
    make: AnchorMaker,
) -> Predictions:
    anchor_points, stride_of_anchor = make(maps, strides)
    dtype = compute_dtype(*(source for level in levels for source in level))
    grid_size = (maps[0].shape[2], maps[0].shape[3])
    return Predictions(
        tuple(levels), anchor_points.to(dtype), stride_of_anchor.to(dtype), grid_size, reg_max, num_classes
    )

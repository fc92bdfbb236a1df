"""Ground truth of other projects' formats as the batch that ``DetectionLoss`` takes.

Every function returns a dict of ``batch_idx`` (T,) int64, ``cls`` (T,) int64 and ``bboxes`` (T, 4) float32, normalised
centre x, centre y, width, height; where the format marks regions to ignore and there are any, also ``ignore_idx`` (K,)
and ``ignore_bboxes`` (K, 4), of the same types. Boxes keep their order.

Values are checked where reading them is free, on the CPU. Every error is a ``ValueError`` that names the value and the
remedy. Boxes may reach out of the image by one pixel, since annotations are rounded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from yolo_loss.anchors import compute_dtype
from yolo_loss.boxes import xywh2xyxy, xyxy2xywh
from yolo_loss.checks import Array, check_floating, check_numbers, check_shape, describe
from yolo_loss.option_checks import one_of
from yolo_loss.structures import GroundTruth
from yolo_loss.validate import as_tensor, readable_values

# (height, width) in pixels, of all images or one pair for each.
ImageSize = Sequence[float] | Sequence[Sequence[float]] | Tensor | Array
# Class of each name or id, by a mapping or by position.
Classes = Mapping[Any, int] | Sequence[Hashable]

BOX_FORMATS = ("xyxy", "xywh")
ROUNDING = 1.0  # pixels
COLUMNS_OF_PADDED = 5


class _Rows(NamedTuple):
    """The boxes of all images.

    Attributes:
        image: (N,) int64.
        place: (N,) int64, number of the box in its image.
        labels: (N,).
        boxes: (N, 4) pixel xyxy.
        ignored: (N,) bool, regions to ignore; None: none.
    """

    image: Tensor
    place: Tensor
    labels: Tensor
    boxes: Tensor
    ignored: Tensor | None = None


def from_torchvision(
    targets: Sequence[Mapping[str, Any]],
    image_size: ImageSize | None = None,
    *,
    num_classes: int | None = None,
    first_label: int = 0,
) -> dict[str, Tensor]:
    """Convert the targets of torchvision's detection datasets and models.

    Args:
        targets: For each image a dict of ``boxes`` (N, 4) pixel xyxy and ``labels`` (N,); with ``iscrowd`` (N,),
            crowds are regions to ignore.
        image_size: (height, width) in pixels of all images or one pair per image, as the boxes have it; None: the
            ``canvas_size`` of ``boxes``, if they are torchvision's ``BoundingBoxes``.
        num_classes: C; None: labels have no upper bound here.
        first_label: Label of class 0; 1 where label 0 means background, as in torchvision's own detectors.

    Returns:
        The batch, on the device of the boxes.

    Raises:
        ValueError: A key or a size is missing, shapes do not belong together, a label does not exist, or a box is not
            finite, has its corners in another order or lies beyond the image.
    """
    columns = [_torchvision_columns(f"targets[{image}]", target) for image, target in enumerate(targets)]
    if image_size is None:
        image_size = [_canvas_size(image, target["boxes"]) for image, target in enumerate(targets)]
    rows = _join(columns)
    _check_labels(rows, "targets[{image}]['labels'][{place}]", first_label, num_classes)
    rows = rows._replace(labels=rows.labels.long() - first_label)
    return _batch(rows, _sizes(image_size, len(targets)), "targets[{image}]['boxes'][{place}]")


def from_coco(
    annotations: Sequence[Sequence[Mapping[str, Any]]], image_size: ImageSize, categories: Classes
) -> dict[str, Tensor]:
    """Convert annotations of COCO's JSON format.

    Args:
        annotations: For each image its annotations, as ``CocoDetection`` and ``loadAnns`` give them: dicts of ``bbox``
            (left, top, width, height in pixels) and ``category_id``. Where ``iscrowd`` is 1 the box is a region to
            ignore.
        image_size: (height, width) in pixels of all images or one pair per image, as the boxes have it.
        categories: Class of each category id, as a dict or as the list of ids, whose positions are the classes. Ids of
            COCO itself run to 90 for 80 classes.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: A key or a size is missing, a category is unknown, or a box is not four finite numbers, has a
            negative side or lies beyond the image.
    """
    classes = _class_numbers(categories)
    image, place, labels, boxes, crowds = [], [], [], [], []
    for index, listed in enumerate(annotations):
        for number, annotation in enumerate(listed):
            where = f"annotations[{index}][{number}]"
            left, top, width, height = _four_numbers(f"{where}['bbox']", _entry(where, annotation, "bbox"))
            category = _entry(where, annotation, "category_id")
            image.append(index)
            place.append(number)
            labels.append(_class_of(f"{where}['category_id']", category, classes, "categories"))
            boxes.append((left, top, left + width, top + height))
            crowds.append(bool(annotation.get("iscrowd", 0)))
    rows = _rows_from_lists(image, place, labels, boxes, crowds)
    return _batch(rows, _sizes(image_size, len(annotations)), "annotations[{image}][{place}]['bbox']")


def from_voc(
    annotations: Sequence[Mapping[str, Any]],
    classes: Classes,
    image_size: ImageSize | None = None,
    *,
    ignore_difficult: bool = False,
) -> dict[str, Tensor]:
    """Convert annotations of Pascal VOC's XML format.

    Corners are taken as they are. VOC's own files count pixels from 1, so that their boxes lie half a pixel off.

    Args:
        annotations: For each image the dict that ``VOCDetection`` gives, with or without the outer ``annotation``: its
            objects have ``name`` and ``bndbox`` of ``xmin``, ``ymin``, ``xmax``, ``ymax`` in pixels; numbers may be
            text.
        classes: Class of each name, as a dict or as the list of names, whose positions are the classes.
        image_size: (height, width) in pixels of all images or one pair per image, as the boxes have it; None: each
            annotation's ``size``.
        ignore_difficult: Whether objects marked ``difficult`` are regions to ignore; else they are ordinary objects.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: A key or a size is missing, a name is unknown, or a box is not four finite numbers, has its corners
            in another order or lies beyond the image.
    """
    numbers = _class_numbers(classes)
    inner = [annotation.get("annotation", annotation) for annotation in annotations]
    image, place, labels, boxes, difficult = [], [], [], [], []
    for index, annotation in enumerate(inner):
        for number, thing in enumerate(_objects(annotation)):
            where = f"annotations[{index}]['object'][{number}]"
            corners = _entry(where, thing, "bndbox")
            sides = [_entry(f"{where}['bndbox']", corners, side) for side in ("xmin", "ymin", "xmax", "ymax")]
            image.append(index)
            place.append(number)
            labels.append(_class_of(f"{where}['name']", _entry(where, thing, "name"), numbers, "classes"))
            boxes.append(_four_numbers(f"{where}['bndbox']", sides))
            difficult.append(ignore_difficult and str(thing.get("difficult", 0)).strip() == "1")
    if image_size is None:
        image_size = [_voc_size(f"annotations[{index}]", annotation) for index, annotation in enumerate(inner)]
    rows = _rows_from_lists(image, place, labels, boxes, difficult)
    return _batch(rows, _sizes(image_size, len(inner)), "annotations[{image}]['object'][{place}]['bndbox']")


def from_padded(
    targets: Tensor | Array | GroundTruth | tuple[Any, Any, Any],
    image_size: ImageSize,
    *,
    box_format: str = "xyxy",
    num_classes: int | None = None,
) -> dict[str, Tensor]:
    """Convert ground truth that is padded to equal length per image.

    On a GPU the result's length is read, which synchronises.

    Args:
        targets: (B, M, 5), the label and the box of each slot, where slots whose four coordinates have a sum of 0 or
            less are padding; or three tensors: labels (B, M) or (B, M, 1), boxes (B, M, 4) and a mask as the labels,
            non-zero on valid slots, for example a ``GroundTruth``.
        image_size: (height, width) in pixels of all images or one pair per image.
        box_format: In pixels, ``xyxy``: x1, y1, x2, y2; or ``xywh``: centre x, centre y, width, height.
        num_classes: C; None: labels have no upper bound here.

    Returns:
        The batch of the valid slots, on their device.

    Raises:
        ValueError: Shapes do not belong together, a size is missing, a label does not exist, or a box is not finite,
            has its corners in another order or lies beyond the image.
    """
    one_of("box_format", box_format, BOX_FORMATS)
    labels, boxes, valid = _padded_columns(targets)
    image, place = valid.nonzero(as_tuple=True)
    boxes = boxes[image, place]
    rows = _Rows(image, place, labels[image, place], xywh2xyxy(boxes) if box_format == "xywh" else boxes)
    _check_labels(rows, "the label of targets[{image}, {place}]", 0, num_classes)
    return _batch(rows, _sizes(image_size, len(valid)), "the box of targets[{image}, {place}]")


def _torchvision_columns(where: str, target: Mapping[str, Any]) -> _Rows:
    labels = as_tensor(f"{where}['labels']", _entry(where, target, "labels"))
    boxes = as_tensor(f"{where}['boxes']", _entry(where, target, "boxes"), np.float32)
    count = labels.shape[0] if labels.ndim == 1 else None
    if count == 0 and not boxes.numel():  # an image without boxes, of any shape and dtype
        labels, boxes = labels.long(), boxes.new_zeros((0, 4), dtype=torch.float32)
    check_shape(f"{where}['labels']", labels, (None,), "(N,), one for every box")
    check_shape(f"{where}['boxes']", boxes, (count, 4), "(N, 4) pixel xyxy, N as in the labels")
    check_numbers(f"{where}['labels']", labels)
    box_format = getattr(getattr(boxes, "format", None), "value", "XYXY")  # of torchvision's BoundingBoxes
    if box_format != "XYXY":
        raise ValueError(f"{where}['boxes'] has the format {box_format}; convert it to XYXY")
    ignored = None
    if "iscrowd" in target:
        ignored = as_tensor(f"{where}['iscrowd']", target["iscrowd"], flags=True) != 0
        check_shape(f"{where}['iscrowd']", ignored, (count,), "(N,), one for every box")
    place = torch.arange(len(labels), device=labels.device)
    return _Rows(torch.zeros_like(place), place, labels, boxes, ignored)


def _canvas_size(image: int, boxes: Any) -> Sequence[float]:
    size: Sequence[float] | None = getattr(boxes, "canvas_size", None)
    if size is None:
        raise ValueError(
            f"image_size is missing, and targets[{image}]['boxes'] has no canvas_size; give (height, width) in pixels"
        )
    return size


def _join(columns: Sequence[_Rows]) -> _Rows:
    """Join the rows of every image, and number the images."""
    if not columns:
        return _rows_from_lists([], [], [], [], [])
    image = torch.cat([rows.image + index for index, rows in enumerate(columns)])
    place, labels, boxes = (torch.cat(parts) for parts in zip(*(rows[1:4] for rows in columns), strict=True))
    if all(rows.ignored is None for rows in columns):
        return _Rows(image, place, labels, boxes)
    marks = (
        torch.zeros_like(rows.labels, dtype=torch.bool) if rows.ignored is None else rows.ignored for rows in columns
    )
    return _Rows(image, place, labels, boxes, torch.cat(list(marks)))


def _rows_from_lists(
    image: list[int],
    place: list[int],
    labels: list[int],
    boxes: list[tuple[float, float, float, float]],
    ignored: list[bool],
) -> _Rows:
    images, places, classes = (torch.tensor(column, dtype=torch.long) for column in (image, place, labels))
    corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return _Rows(images, places, classes, corners, torch.tensor(ignored, dtype=torch.bool))


def _padded_columns(targets: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (B, M), boxes (B, M, 4) and the mask of valid slots (B, M)."""
    if isinstance(targets, tuple) and len(targets) == len(GroundTruth._fields):
        labels, mask = (as_tensor(name, targets[index], flags=True) for index, name in ((0, "labels"), (2, "mask")))
        boxes = as_tensor("boxes", targets[1], np.float32)
        check_shape("boxes", boxes, (None, None, 4), "(B, M, 4)")
        size = tuple(boxes.shape[:2])
        labels, mask = (column.squeeze(-1) if column.ndim > len(size) else column for column in (labels, mask))
        check_shape("labels", labels, size, "(B, M) or (B, M, 1), B and M as in the boxes")
        check_shape("mask", mask, size, "(B, M) or (B, M, 1), B and M as in the boxes")
        check_floating("boxes", boxes)
        return labels, boxes, mask != 0
    joined = as_tensor("targets", targets, np.float32)
    check_shape("targets", joined, (None, None, COLUMNS_OF_PADDED), "(B, M, 5): label and box of each slot")
    check_floating("targets", joined)
    return joined[..., 0], joined[..., 1:], joined[..., 1:].sum(dim=-1) > 0


def _objects(annotation: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """An annotation's objects; some readers of XML give a single one without a list around it."""
    listed = annotation.get("object", ())
    return (listed,) if isinstance(listed, Mapping) else listed


def _voc_size(where: str, annotation: Mapping[str, Any]) -> tuple[float, float]:
    size = annotation.get("size")
    if not isinstance(size, Mapping) or "height" not in size or "width" not in size:
        raise ValueError(f"image_size is missing, and {where} has no size; give (height, width) in pixels")
    try:
        height, width = float(size["height"]), float(size["width"])
    except (TypeError, ValueError):
        height, width = 0.0, 0.0
    if not height > 0 or not width > 0:
        raise ValueError(
            f"{where}['size'] is {dict(size)}, not of an image; give image_size, (height, width) in pixels"
        )
    return height, width


def _entry(where: str, holder: Any, key: str) -> Any:
    if not isinstance(holder, Mapping):
        raise ValueError(f"{where} is {describe(holder)}; give a dict with {key}")
    if key not in holder:
        raise ValueError(f"{where} lacks {key}, it has {', '.join(map(str, holder)) or 'nothing'}; add it")
    return holder[key]


def _four_numbers(where: str, values: Any) -> tuple[float, float, float, float]:
    try:
        one, two, three, four = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is {values!r}; give four numbers, in pixels") from error
    return one, two, three, four


def _class_numbers(classes: Classes) -> dict[Any, int]:
    if isinstance(classes, Mapping):
        return dict(classes)
    return {name: number for number, name in enumerate(classes)}


def _class_of(where: str, name: Any, classes: Mapping[Any, int], argument: str) -> int:
    if name not in classes:
        shown = ", ".join(repr(known) for known in list(classes)[:10]) + (", ..." if len(classes) > 10 else "")  # noqa: PLR2004
        raise ValueError(f"{where} is {name!r}, but {argument} has {shown}; add it there, or leave the box out")
    return classes[name]


def _check_labels(rows: _Rows, name: str, first: int, num_classes: int | None) -> None:
    labels = readable_values(rows.labels)
    if labels is None or not labels.size:
        return
    numbers = labels.astype(np.float64)
    wrong = ~(numbers >= first) | (numbers != np.trunc(numbers))
    if num_classes is not None:
        wrong |= numbers >= first + num_classes
    if wrong.any():
        row = int(np.argmax(wrong))
        to = "" if num_classes is None else f" to {first + num_classes - 1}"
        raise ValueError(f"{_named(name, rows, row)} is {labels[row]}; give whole numbers from {first}{to}")


def _sizes(image_size: Any, images: int) -> Tensor:
    """Height and width of each image, (B, 2) float64."""
    form = "give (height, width) in pixels, of all images or one pair for each"
    if image_size is None:
        raise ValueError(f"image_size is missing; {form}")
    if images == 0:
        return torch.ones((0, 2), dtype=torch.float64)
    sizes = as_tensor("image_size", image_size).double()
    if tuple(sizes.shape) not in ((2,), (images, 2)):
        raise ValueError(f"image_size has shape {tuple(sizes.shape)}, and there are {images} images; {form}")
    values = readable_values(sizes)
    if values is not None and not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"image_size is {values.tolist()}; {form}, all above 0")
    return sizes.expand(images, 2)


def _batch(rows: _Rows, sizes: Tensor, name: str) -> dict[str, Tensor]:
    """Check the boxes, normalise them, and part objects from regions to ignore."""
    boxes = rows.boxes.to(compute_dtype(rows.boxes))
    sizes = sizes.to(boxes.device, boxes.dtype)[rows.image].flip(1)  # (N, 2) width, height
    _check_boxes(rows, boxes, sizes, name)
    normalised = (xyxy2xywh(boxes) / sizes.repeat(1, 2)).float()
    batch = {"batch_idx": rows.image, "cls": rows.labels.long(), "bboxes": normalised}
    if rows.ignored is None or not rows.ignored.any():
        return batch
    regions = {"ignore_idx": rows.image[rows.ignored], "ignore_bboxes": normalised[rows.ignored]}
    return {key: column[~rows.ignored] for key, column in batch.items()} | regions


def _check_boxes(rows: _Rows, boxes: Tensor, sizes: Tensor, name: str) -> None:
    values, sides = readable_values(boxes), readable_values(sizes)
    if values is None or sides is None or not values.size:
        return
    low, high = values[:, :2], values[:, 2:]
    beyond = (low < -ROUNDING) | (high > sides + ROUNDING)
    for wrong, remedy in (
        (~np.isfinite(values), "give four finite numbers, or leave the box out"),
        (high < low, "its second corner lies before the first; give x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"),
        (
            beyond,
            "beyond the image of {width:g} x {height:g} pixels; clip it, or give the size that the boxes belong to",
        ),
    ):
        if wrong.any():
            row = int(np.argmax(wrong.any(axis=1)))
            width, height = sides[row].tolist()
            shown = ", ".join(f"{number:g}" for number in values[row].tolist())
            raise ValueError(
                f"{_named(name, rows, row)} is [{shown}] as xyxy; {remedy.format(width=width, height=height)}"
            )


def _named(name: str, rows: _Rows, row: int) -> str:
    return name.format(image=int(rows.image[row]), place=int(rows.place[row]))

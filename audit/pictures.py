"""Read pictures with their labels as a detector takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from yolo_assigner.audit.structures import BadFileError, Item
from yolo_loss.targets import from_coco
from yolo_loss.validate import check_batch

PADDING = 114  # the grey that YOLO detectors are trained with
COLUMNS = 5
LEAST_OUTLINE = 7  # a class and three points

# What pillow raises for files that are no pictures, broken, or far too large.
PICTURE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Labels(NamedTuple):
    """Ground truth of one picture.

    Attributes:
        cls: (N,) int64.
        boxes: (N, 4) float32, centre x, centre y, width, height, normalised by the picture's size.
        ignored: (K, 4) likewise, regions to ignore.
    """

    cls: Tensor
    boxes: Tensor
    ignored: Tensor


class Frame(NamedTuple):
    """Where a picture lies in the detector's square, as shares of its side.

    Attributes:
        left: Left of it.
        top: Above it.
        width: Of the picture.
        height: Of the picture.
    """

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0


class Example(NamedTuple):
    """A picture with its labels.

    Attributes:
        name: Its name in the table.
        image: (3, S, S) float32, red, green, blue in [0, 1].
        frame: Where the picture lies in it.
        labels: Ground truth.
    """

    name: str
    image: Tensor
    frame: Frame
    labels: Labels


def read_example(item: Item, imgsz: int, num_classes: int, categories: tuple[int, ...]) -> Example:
    """Read a picture and its labels.

    Args:
        item: Names both.
        imgsz: S, side of the square that the picture is fitted into.
        num_classes: C of the detector.
        categories: COCO category ids, whose positions are the classes.

    Raises:
        BadFileError: The picture or the labels cannot be used.
    """
    try:
        with Image.open(item.path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except PICTURE_ERRORS as error:
        raise BadFileError(f"{item.path} cannot be read as a picture ({error}); replace or remove it") from error
    if item.label:
        labels = read_yolo_labels(Path(item.label), num_classes)
    else:
        labels = _coco_labels(item, upright.size, num_classes, categories)
    image, frame = fit(upright, imgsz)
    return Example(item.name, torch.from_numpy(image), frame, labels)


def fit(picture: Image.Image, imgsz: int) -> tuple[NDArray[np.float32], Frame]:
    """Fit a picture into a square, its sides in proportion, with grey on both sides.

    Args:
        picture: In RGB.
        imgsz: S, side of the square in pixels.

    Returns:
        (3, S, S) in [0, 1], and where the picture lies in it.
    """
    scale = imgsz / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    left, top = (imgsz - width) // 2, (imgsz - height) // 2
    square = Image.new("RGB", (imgsz, imgsz), (PADDING, PADDING, PADDING))
    square.paste(picture.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    return np.ascontiguousarray(pixels), Frame(left / imgsz, top / imgsz, width / imgsz, height / imgsz)


def place(boxes: Tensor, frame: Frame) -> Tensor:
    """Move normalised boxes (N, 4), as of ``Labels``, from the picture into the detector's square."""
    size = boxes.new_tensor([frame.width, frame.height, frame.width, frame.height])
    return boxes * size + boxes.new_tensor([frame.left, frame.top, 0.0, 0.0])


def read_yolo_labels(path: Path, num_classes: int) -> Labels:
    """Read labels in YOLO's format, a line an object: class and box, or class and outline.

    Args:
        path: The text file; where there is none the picture has no objects.
        num_classes: C.

    Raises:
        BadFileError: A line is not of this form, a class does not exist, or a box is in pixels or not finite.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError) as error:
        raise BadFileError(f"{path} cannot be read as text ({error}); replace it") from error
    rows = [_yolo_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, COLUMNS)
    return _checked(str(path), columns[:, 0], columns[:, 1:].float(), num_classes)


def _yolo_row(path: Path, number: int, line: str) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError as error:
        raise BadFileError(f"{path} line {number}: {error}; give numbers") from error
    if len(values) == COLUMNS:
        return values
    if len(values) < LEAST_OUTLINE or len(values) % 2 == 0:
        raise BadFileError(
            f"{path} line {number} has {len(values)} numbers; give class, centre x, centre y, width, height, or a "
            "class and three or more points"
        )
    xs, ys = values[1::2], values[2::2]
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    return [values[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _checked(where: str, cls: Tensor, boxes: Tensor, num_classes: int, ignored: Tensor | None = None) -> Labels:
    image = torch.zeros(len(cls), dtype=torch.long)
    try:
        _, cls, boxes = check_batch({"batch_idx": image, "cls": cls, "bboxes": boxes}, 1, num_classes)
    except ValueError as error:
        raise BadFileError(f"{where}: {error}") from error
    return Labels(cls, boxes, boxes.new_zeros((0, 4)) if ignored is None else ignored)


def _coco_labels(item: Item, size: tuple[int, int], num_classes: int, categories: tuple[int, ...]) -> Labels:
    width, height = size
    try:
        batch: dict[str, Any] = from_coco([item.annotations], (height, width), categories)
    except ValueError as error:
        raise BadFileError(f"annotations of {item.name}: {error}") from error
    where = f"annotations of {item.name}"
    return _checked(where, batch["cls"], batch["bboxes"], num_classes, batch.get("ignore_bboxes"))

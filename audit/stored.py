"""Files of stored predictions: the maps of a head with the ground truth that they are judged by.

A file, ``.npz`` or ``.safetensors``, holds ``feat_0``, ``feat_1``, ... (B, 4R + C, H_i, W_i), one for each stride;
``batch_idx`` (T,), ``cls`` (T,) and ``bboxes`` (T, 4), normalised centre x, centre y, width, height; and optionally
``image_size``, height and width in pixels, and ``names`` (B,), in ``.npz`` files, of the pictures.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_assigner.audit.structures import BadFileError, Item, Settings
from yolo_loss.validate import check_batch

Array = NDArray[Any]

GROUND_TRUTH = ("batch_idx", "cls", "bboxes")
MAP_DIMENSIONS = 4


class Stored(NamedTuple):
    """Predictions of B pictures.

    Attributes:
        maps: L maps (B, 4R + C, H_i, W_i), float32.
        batch: ``batch_idx``, ``cls`` and ``bboxes``.
        names: Of the pictures.
        num_classes: C.
    """

    maps: list[Tensor]
    batch: dict[str, Tensor]
    names: tuple[str, ...]
    num_classes: int


def read_stored(item: Item, settings: Settings) -> Stored:
    """Read a file of stored predictions.

    Args:
        item: The file.
        settings: Gives strides and bins.

    Raises:
        BadFileError: It cannot be read, or its arrays do not belong together.
    """
    arrays = _read(Path(item.path))
    needed = [f"feat_{level}" for level in range(len(settings.strides))]
    missing = [name for name in (*needed, *GROUND_TRUTH) if name not in arrays]
    if missing:
        raise BadFileError(f"{item.path} lacks {', '.join(missing)}; store one map for each of --strides, and boxes")
    maps = [torch.from_numpy(np.asarray(arrays[name], dtype=np.float32)) for name in needed]
    num_classes = _check_maps(item, maps, settings)
    images = maps[0].shape[0]
    try:
        columns = check_batch({name: arrays[name] for name in GROUND_TRUTH}, images, num_classes)
    except ValueError as error:
        raise BadFileError(f"{item.path}: {error}") from error
    _check_size(item, arrays, maps[0], settings)
    names = tuple(str(name) for name in arrays.get("names", ()))
    if len(names) != images:
        names = tuple(f"{item.name}#{image}" for image in range(images))
    return Stored(maps, dict(zip(GROUND_TRUTH, columns, strict=True)), names, num_classes)


def _read(path: Path) -> dict[str, Array]:
    try:
        if path.suffix.lower() == ".safetensors":
            return {name: _array(tensor) for name, tensor in safetensors.torch.load_file(path).items()}
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise BadFileError(f"{path} cannot be read ({error}); store it again") from error


def _array(tensor: Tensor) -> Array:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _check_maps(item: Item, maps: list[Tensor], settings: Settings) -> int:
    """Check the maps' shapes, and return the number of classes."""
    shapes = [tuple(one.shape) for one in maps]
    first = shapes[0]
    classes = first[1] - 4 * settings.reg_max if len(first) == MAP_DIMENSIONS else 0
    if any(len(shape) != MAP_DIMENSIONS or shape[:2] != first[:2] for shape in shapes) or classes < 1:
        raise BadFileError(
            f"{item.path} has maps of shapes {', '.join(map(str, shapes))}; give (B, 4R + C, H, W) with the same B, R "
            f"and C, where R is --reg-max {settings.reg_max} and C at least 1"
        )
    pixels = [
        (round(h * stride), round(w * stride)) for (*_, h, w), stride in zip(shapes, settings.strides, strict=True)
    ]
    if len(set(pixels)) > 1:
        raise BadFileError(f"{item.path} has maps of {pixels} pixels at the strides; give the head's as --strides")
    return classes


def _check_size(item: Item, arrays: dict[str, Array], finest: Tensor, settings: Settings) -> None:
    if "image_size" not in arrays:
        return
    size = tuple(int(side) for side in arrays["image_size"])
    mapped = tuple(round(side * settings.strides[0]) for side in finest.shape[2:])
    if size != mapped:
        raise BadFileError(
            f"{item.path} has image_size {size}, but its maps are of {mapped} pixels; give the head's --strides"
        )

"""Checks at the boundary: each error names the value and the remedy.

Shapes and dtypes are always checked. Values are read only where that costs no synchronisation, on the CPU, and never
while a graph is being traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: Sequence[int | None], layout: str) -> None:
    """Compare a shape with the expected one, None standing for any size.

    Raises:
        ValueError: They differ.
    """
    actual = tuple(tensor.shape)
    fits = len(actual) == len(shape) and all(
        want is None or want == got for want, got in zip(shape, actual, strict=True)
    )
    if not fits:
        expected = ", ".join("*" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} has shape {actual}, expected ({expected}): {layout}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Refuse integer tensors where numbers with a fraction are meant.

    Raises:
        ValueError: The dtype is not a floating-point one.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected a floating-point one; convert it with .float()")


def check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    """Refuse class indices that no class has.

    Args:
        name: What to call the tensor in the error.
        labels: Any shape.
        num_classes: C; indices lie below it. Those below 0 count as 0 and pass.

    Raises:
        ValueError: A label is C or larger.
    """
    if not values_readable(labels) or labels.numel() == 0:
        return
    largest = labels.max().item()
    if largest >= num_classes:
        raise ValueError(
            f"{name} contains class {largest:g}, but num_classes is {num_classes}; classes are counted from 0 to "
            f"{num_classes - 1}: check the labels, or build with more classes"
        )


def check_batch(batch: Mapping[str, Tensor], batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the three ragged tensors out of a training batch.

    Args:
        batch: With ``batch_idx`` (T,) or (T, 1), ``cls`` (T,) or (T, 1), ``bboxes`` (T, 4).
        batch_size: B.

    Returns:
        ``batch_idx`` (T,) int64, ``cls`` (T,) int64, ``bboxes`` (T, 4).

    Raises:
        ValueError: A key is missing, the lengths differ, or an index points to no image.
    """
    missing = [key for key in ("batch_idx", "cls", "bboxes") if key not in batch]
    if missing:
        raise ValueError(f"batch lacks {', '.join(missing)}; it needs batch_idx (T,), cls (T,) and bboxes (T, 4)")
    bboxes = batch["bboxes"]
    check_floating("batch['bboxes']", bboxes)
    count = bboxes.shape[0]
    check_shape("batch['bboxes']", bboxes, (count, 4), "(T, 4) normalised centre x, centre y, width, height")
    columns = []
    for key in ("batch_idx", "cls"):
        column = batch[key]
        if column.numel() != count:
            raise ValueError(
                f"batch['{key}'] has {column.numel()} entries, batch['bboxes'] has {count} rows; make them equal"
            )
        columns.append(column.reshape(-1).long())
    images, labels = columns
    if count and values_readable(images):
        lowest, highest = int(images.min()), int(images.max())
        if lowest < 0 or highest >= batch_size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(
                f"batch['batch_idx'] contains {wrong}, but the predictions have {batch_size} images, "
                f"numbered 0 to {batch_size - 1}"
            )
    return images, labels, bboxes


def values_readable(tensor: Tensor) -> bool:
    """Whether looking at the numbers is free: on the CPU, and not while compiling or exporting."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()

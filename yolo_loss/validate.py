"""The checks of :mod:`yolo_loss.checks` for tensors.

Shapes and dtypes are always checked. Values are checked only where reading them needs no synchronisation: on the CPU,
and not while a graph is traced or ``torch.func.vmap`` batches the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_loss.checks import (
    Array,
    as_array,
    batch_columns,
    check_class_weight_values,
    check_class_weights,
    check_columns,
    check_region_values,
    check_regions,
    check_slots,
    check_values,
    dtype_name,
    region_columns,
)


def as_tensor(name: str, value: Any, list_type: type[np.floating[Any]] | None = None, *, flags: bool = False) -> Tensor:
    """Return a tensor unchanged, or make one from an array or lists on the CPU.

    Args:
        name: The value's name in an error.
        value: A tensor, an array of numpy, or lists of numbers.
        list_type: Dtype of lists; None: numpy's choice.
        flags: Whether booleans are accepted.

    Returns:
        The tensor, or a view of the array where torch supports it.

    Raises:
        ValueError: Lists are irregular, or elements are not numbers.
    """
    if isinstance(value, Tensor):
        return value
    array = as_array(name, value, list_type, flags=flags)
    # torch supports neither foreign byte orders nor negative strides, and warns about read-only arrays.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def check_batch(batch: Any, batch_size: int, num_classes: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Extract and check the three ragged columns of a training batch.

    Args:
        batch: With ``batch_idx`` (T,) or (T, 1), ``cls`` (T,) or (T, 1), ``bboxes`` (T, 4), each a tensor, an array or
            a list.
        batch_size: B.
        num_classes: C; None if unknown.

    Returns:
        ``batch_idx`` (T,) int64, ``cls`` (T,) int64, ``bboxes`` (T, 4).

    Raises:
        ValueError: A key is missing, shapes or types are wrong, an image or a class does not exist, or a box is not
            finite or in pixels.
    """
    list_types = (None, None, np.float32)
    columns = [
        as_tensor(name, column, list_type)
        for (name, column), list_type in zip(batch_columns(batch).items(), list_types, strict=True)
    ]
    batch_idx, cls, bboxes = columns
    check_columns(batch_idx, cls, bboxes)
    check_values(readable_values(batch_idx), readable_values(cls), readable_values(bboxes), batch_size, num_classes)
    boxes = bboxes.reshape(-1, 4)
    return batch_idx.reshape(-1).long(), cls.reshape(-1).long(), boxes if boxes.is_floating_point() else boxes.float()


def check_class_weights_of(batch: Mapping[str, Any], images: int, num_classes: int) -> Tensor | None:
    """Extract and check the class weights of a batch.

    Args:
        batch: With or without ``class_weights``, (C,) or (B, C).
        images: B.
        num_classes: C.

    Returns:
        (B, C); None without.

    Raises:
        ValueError: The shape or dtype is wrong, or a weight is negative or not finite.
    """
    if "class_weights" not in batch or batch["class_weights"] is None:
        return None
    weights = as_tensor("class_weights", batch["class_weights"], np.float32)
    check_class_weights(weights, images, num_classes)
    values = readable_values(weights)
    if values is not None:
        check_class_weight_values(values)
    return weights.expand(images, -1)


def check_regions_of(batch: Mapping[str, Any], images: int) -> tuple[Tensor, Tensor] | None:
    """Extract and check the ragged regions to ignore of a batch.

    Args:
        batch: With or without ``ignore_idx`` (K,) or (K, 1) and ``ignore_bboxes`` (K, 4).
        images: B.

    Returns:
        ``ignore_idx`` (K,) int64 and ``ignore_bboxes`` (K, 4); None without any region.

    Raises:
        ValueError: One is given without the other, shapes or dtypes are wrong, an image does not exist, or a region is
            not finite or in pixels.
    """
    columns = region_columns(batch)
    if columns is None:
        return None
    index, boxes = (
        as_tensor(name, columns[name], kind) for name, kind in zip(columns, (None, np.float32), strict=True)
    )
    check_regions(index, boxes)
    check_region_values(readable_values(index), readable_values(boxes), images)
    return (index.reshape(-1).long(), boxes) if len(index) else None


def check_labels(labels: Tensor, mask: Tensor, num_classes: int) -> None:
    """Check the classes of padded ground truth; labels below 0 count as 0 and pass.

    Args:
        labels: (B, M, 1).
        mask: (B, M, 1), non-zero on valid slots.
        num_classes: C.

    Raises:
        ValueError: A label is C or larger, or the label of a valid slot is not a whole number.
    """
    values, valid = readable_values(labels), readable_values(mask)
    if values is not None and valid is not None:
        check_slots(values, valid, num_classes, negative=True)


def readable_values(tensor: Tensor) -> Array | None:
    """The values as an array, a view where possible; None where reading them is not free."""
    if not can_read_values(tensor):
        return None
    for read in (_view, _copy):
        try:
            return read(tensor)
        except (RuntimeError, TypeError, AssertionError):  # batched by vmap, fake or sparse
            continue
    return None


def _view(tensor: Tensor) -> Array:
    # numpy has no bfloat16; float32 holds its values exactly.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def _copy(tensor: Tensor) -> Array:
    """Copy values element by element: in ``torch.func.grad`` and ``jvp`` tensors have no memory of their own."""
    values = np.array(tensor.tolist(), "float32" if tensor.dtype == torch.bfloat16 else dtype_name(tensor))
    return values.reshape(tensor.shape)


def can_read_values(tensor: Tensor) -> bool:
    """Whether reading values is free: on the CPU, and not while compiling or exporting."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()

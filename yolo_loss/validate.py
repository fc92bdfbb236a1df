"""The checks of :mod:`yolo_loss.checks` for tensors.

Shapes and dtypes are always checked. Values are read only where that costs no synchronisation, on the CPU, and never
while a graph is being traced; of tensors that ``torch.func.vmap`` batches there are none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_loss.checks import (
    Array,
    as_array,
    batch_columns,
    check_columns,
    check_slots,
    check_values,
    dtype_name,
)


def as_tensor(name: str, value: Any, list_type: type[np.floating[Any]] | None = None, *, flags: bool = False) -> Tensor:
    """A tensor, as it is, or made from an array or lists on the CPU.

    Args:
        name: What to call the value in an error.
        value: A tensor, an array of numpy, or lists of numbers.
        list_type: Lists become this; None: what numpy makes of them.
        flags: Whether booleans are as good as numbers.

    Returns:
        The tensor, or a view of the array where torch can have one.

    Raises:
        ValueError: Lists are irregular, or something is no number.
    """
    if isinstance(value, Tensor):
        return value
    array = as_array(name, value, list_type, flags=flags)
    # torch knows neither foreign byte orders nor negative steps, and warns of arrays that must not be written to.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def check_batch(batch: Any, batch_size: int, num_classes: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Take the three ragged columns out of a training batch.

    Args:
        batch: With ``batch_idx`` (T,) or (T, 1), ``cls`` (T,) or (T, 1), ``bboxes`` (T, 4), each a tensor, an array or
            a list.
        batch_size: B.
        num_classes: C; None when it is not known here.

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


def check_labels(labels: Tensor, mask: Tensor, num_classes: int) -> None:
    """Refuse padded ground truth of classes that do not exist; those below 0 count as 0 and pass.

    Args:
        labels: (B, M, 1).
        mask: (B, M, 1), non-zero on valid slots.
        num_classes: C.

    Raises:
        ValueError: A label is C or larger, or that of a valid slot is no whole number.
    """
    values, valid = readable_values(labels), readable_values(mask)
    if values is not None and valid is not None:
        check_slots(values, valid, num_classes, negative=True)


def readable_values(tensor: Tensor) -> Array | None:
    """The values, a view where possible, where looking at them is free; None elsewhere."""
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
    """Inside ``torch.func.grad`` and ``jvp`` tensors have values, but no memory of their own."""
    values = np.array(tensor.tolist(), "float32" if tensor.dtype == torch.bfloat16 else dtype_name(tensor))
    return values.reshape(tensor.shape)


def can_read_values(tensor: Tensor) -> bool:
    """Whether looking at the numbers is free: on the CPU, and not while compiling or exporting."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()

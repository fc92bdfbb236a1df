"""Padding of a data loader's ragged batch to ground truth of equal length per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from yolo_loss.boxes import xywh2xyxy
from yolo_loss.execution.buffers import constants, to_device
from yolo_loss.structures import ClassInputs, GroundTruth
from yolo_loss.validate import can_read_values, check_batch, check_class_weights_of, check_regions_of


def pad_ground_truth(
    batch_idx: Tensor,
    cls: Tensor,
    bboxes_xywh: Tensor,
    batch_size: int,
    image_size: tuple[int, int],
    slots: int | None = None,
) -> GroundTruth:
    """Pad ground truth to the largest count in the batch, keeping the order of arrival inside each image.

    Args:
        batch_idx: (T,) image of each box, whole numbers in [0, B).
        cls: (T,) classes, whole numbers.
        bboxes_xywh: (T, 4) centre x, centre y, width, height, normalised to [0, 1] by the image size.
        batch_size: B.
        image_size: (height, width) in pixels.
        slots: M; None: the largest count, 0 when T = 0. For tensors on a GPU, reading it synchronises.

    Returns:
        Padded ground truth in pixel xyxy. Padding rows are zeros; a row is valid when the sum of its coordinates is
        above 0.

    Raises:
        ValueError: As ``check_batch``, or an image has more boxes than ``slots``; on a GPU that is an asynchronous
            assertion, which fails in the kernels that follow.
    """
    batch = {"batch_idx": batch_idx, "cls": cls, "bboxes": bboxes_xywh}
    return _pad(*check_batch(batch, batch_size), batch_size, image_size, slots)


def _pad(
    batch_idx: Tensor,
    cls: Tensor,
    bboxes_xywh: Tensor,
    batch_size: int,
    image_size: tuple[int, int],
    slots: int | None,
) -> GroundTruth:
    height, width = image_size
    scale = constants((width, height, width, height), bboxes_xywh)
    boxes = xywh2xyxy(bboxes_xywh * scale)  # (T, 4)
    # One comparison and one running sum in place of a sort: on a GPU every operation counts.
    belongs = batch_idx == torch.arange(batch_size, device=batch_idx.device)[:, None]  # (B, T)
    counts = belongs.sum(dim=1)  # (B,)
    if slots is None:
        slots = int(counts.max()) if batch_size else 0
    else:
        _check_counts(counts, slots)
    rank = belongs.cumsum(dim=1).gather(0, batch_idx[None]).squeeze(0) - 1  # (T,) place in its image, in order

    gt_labels = cls.new_zeros((batch_size, slots, 1)).index_put((batch_idx, rank), cls[:, None])
    gt_bboxes = boxes.new_zeros((batch_size, slots, 4)).index_put((batch_idx, rank), boxes)
    return GroundTruth(gt_labels, gt_bboxes, gt_bboxes.sum(dim=-1, keepdim=True) > 0)


def pad_to_device(
    batch: tuple[Tensor, Tensor, Tensor], like: Tensor, image_size: tuple[int, int], images: int, slots: int | None
) -> GroundTruth:
    """Pad a checked batch and move it to a device; a batch on the CPU is padded there, which waits for no GPU.

    Args:
        batch: ``batch_idx``, ``cls`` and ``bboxes_xywh``, as ``check_batch`` gives them.
        like: Gives device, and the boxes' dtype.
        image_size: (height, width) in pixels.
        images: B.
        slots: M, or None.
    """
    device = like.device
    if all(tensor.device.type == "cpu" for tensor in batch):
        device = batch[0].device
    image, label = (to_device(column, device) for column in batch[:2])
    padded = _pad(image, label, to_device(batch[2], device, like.dtype), images, image_size, slots)
    return GroundTruth(*(to_device(field, like.device) for field in padded))


def class_inputs_of(
    batch: Mapping[str, Any], like: Tensor, image_size: tuple[int, int], images: int, num_classes: int
) -> ClassInputs:
    """Check and pad what a batch says about the class loss, and move it to a device.

    Args:
        batch: With or without ``class_weights`` (C,) or (B, C), ``ignore_idx`` (K,) and ``ignore_bboxes`` (K, 4),
            normalised centre x, centre y, width, height.
        like: Gives device and dtype.
        image_size: (height, width) in pixels.
        images: B.
        num_classes: C.

    Raises:
        ValueError: Shapes, dtypes or values are wrong.
    """
    weights, regions = check_class_weights_of(batch, images, num_classes), check_regions_of(batch, images)
    if weights is not None:
        weights = to_device(weights, like.device, like.dtype)
    if regions is None:
        return ClassInputs(weights)
    index, boxes = regions
    padded = pad_to_device((index, torch.zeros_like(index), boxes), like, image_size, images, None)
    return ClassInputs(weights, padded.gt_bboxes, padded.mask_gt)


def _check_counts(counts: Tensor, slots: int) -> None:
    text = f"an image has more than {slots} boxes, as many as there are slots; give a larger max_boxes"
    if can_read_values(counts):
        if counts.numel() and int(counts.max()) > slots:
            raise ValueError(f"an image has {int(counts.max())} boxes, but max_boxes is {slots}; give a larger one")
    else:
        torch._assert_async((counts <= slots).all(), text)


def add_empty_slot(ground_truth: GroundTruth) -> GroundTruth:
    """Append one slot of padding to each image, so that M >= 1 and nothing else changes.

    Args:
        ground_truth: M slots.

    Returns:
        M + 1 slots, the last one padding.
    """
    padding = (field.new_zeros((field.shape[0], 1, field.shape[2])) for field in ground_truth)
    return GroundTruth(*(torch.cat(pair, dim=1) for pair in zip(ground_truth, padding, strict=True)))

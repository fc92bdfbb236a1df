"""From the ragged batch of a data loader to padded ground truth."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_loss.boxes import xywh2xyxy
from yolo_loss.results import GroundTruth


def pad_ground_truth(
    batch_idx: Tensor, cls: Tensor, bboxes_xywh: Tensor, batch_size: int, image_size: tuple[int, int]
) -> GroundTruth:
    """Pad to the largest count in the batch, keeping the order of arrival inside each image.

    Args:
        batch_idx: (T,) int64, image of each box, in [0, B).
        cls: (T,) int64 classes.
        bboxes_xywh: (T, 4) centre x, centre y, width, height, normalised to [0, 1] by the image size.
        batch_size: B.
        image_size: (height, width) in pixels.

    Returns:
        Padded ground truth in pixel xyxy with M = the largest count, 0 when T = 0. Padding rows are zeros; a row is
        valid when the sum of its coordinates is above 0.
    """
    height, width = image_size
    scale = torch.tensor((width, height, width, height), dtype=bboxes_xywh.dtype, device=bboxes_xywh.device)
    boxes = xywh2xyxy(bboxes_xywh * scale)  # (T, 4)
    counts = torch.bincount(batch_idx, minlength=batch_size)  # (B,)
    slots = int(counts.max()) if batch_size else 0
    order = torch.argsort(batch_idx, stable=True)
    image = batch_idx[order]
    rank = torch.arange(len(order), device=image.device) - (counts.cumsum(0) - counts)[image]  # (T,) place in its image

    gt_labels = cls.new_zeros((batch_size, slots, 1)).index_put((image, rank), cls[order, None])
    gt_bboxes = boxes.new_zeros((batch_size, slots, 4)).index_put((image, rank), boxes[order])
    return GroundTruth(gt_labels, gt_bboxes, gt_bboxes.sum(dim=-1, keepdim=True) > 0)


def add_empty_slot(ground_truth: GroundTruth) -> GroundTruth:
    """Append one slot of padding to each image, so that M >= 1 and nothing else changes.

    Args:
        ground_truth: M slots.

    Returns:
        M + 1 slots, the last one empty.
    """
    labels, boxes, mask = ground_truth
    images = labels.shape[0]
    return GroundTruth(
        torch.cat((labels, labels.new_zeros((images, 1, 1))), dim=1),
        torch.cat((boxes, boxes.new_zeros((images, 1, 4))), dim=1),
        torch.cat((mask, mask.new_zeros((images, 1, 1))), dim=1),
    )

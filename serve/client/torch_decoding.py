"""Decoding of tensors on their device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_assigner.serve.detection.results import Array
from yolo_loss.anchors import decode_rows


class DecodedRows(NamedTuple):
    """Decoded anchors.

    Attributes:
        scores: (n, K) float32 probabilities.
        boxes: (n, 4) float32, pixel xyxy.
    """

    scores: Tensor
    boxes: Tensor


@torch.no_grad()
def decode_tensors(logits: Tensor, distri: Tensor, points: Array, stride: float, reg_max: int) -> DecodedRows:
    """Decode a list of anchors of one level, in float32.

    Args:
        logits: (n, K) class logits.
        distri: (n, 4R) logits of the sides' bins, side-major.
        points: (n, 2) pixels.
        stride: Pixels per cell.
        reg_max: R; with 1 the four numbers are the distances themselves.
    """
    grid = torch.from_numpy(points).to(distri.device) / stride
    return DecodedRows(logits.float().sigmoid(), decode_rows(distri.float(), grid, reg_max) * stride)

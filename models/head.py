"""The detection head: box distributions and class logits of every level."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from yolo_assigner.models.blocks import DFL, Conv
from yolo_loss.anchors import make_anchors
from yolo_loss.boxes import dist2bbox, xyxy2xywh

# Decoding uses these numbers instead of the ``stride`` buffer, because an exported graph cannot read a tensor's values.
STRIDES = (8, 16, 32)


class Detections(NamedTuple):
    """Output of the detector in eval mode.

    Attributes:
        predictions: (B, 4 + C, A): centre x, centre y, width, height in pixels, then class probabilities.
        maps: The head's raw maps, as in train mode: per level (B, 4R + C, H_i, W_i).
    """

    predictions: Tensor
    maps: list[Tensor]


class Detect(nn.Module):
    """Detection head: for each level one branch for box distributions and one for class logits.

    Args:
        channels: Channels of each level's features, finest level first.
        nc: Classes, C.
        reg_max: Bins per side, R; 1 means plain distances.

    Attributes:
        nc: Classes, C.
        reg_max: Bins per side, R.
        no: Channels of a raw map, 4R + C.
        stride: (3,) float32, pixels per cell of each level.
    """

    stride: Tensor

    def __init__(self, channels: tuple[int, int, int], nc: int, reg_max: int) -> None:
        super().__init__()
        self.nc, self.reg_max, self.no = nc, reg_max, nc + 4 * reg_max
        self.register_buffer("stride", torch.tensor(STRIDES, dtype=torch.float32), persistent=False)
        box_hidden = max(16, channels[0] // 4, 4 * reg_max)
        class_hidden = max(channels[0], min(nc, 100))
        self.cv2 = nn.ModuleList(_branch(c, box_hidden, 4 * reg_max, 1.0) for c in channels)
        # The initial class probability corresponds to five objects of each class per level of a 640-pixel image.
        self.cv3 = nn.ModuleList(
            _branch(c, class_hidden, nc, math.log(5 / nc / (640 / s) ** 2))
            for c, s in zip(channels, STRIDES, strict=True)
        )
        self.dfl = DFL(reg_max) if reg_max > 1 else nn.Identity()

    def forward(self, features: list[Tensor]) -> list[Tensor] | Detections:
        """Compute raw maps of the levels' features (B, c_i, H_i, W_i); in eval mode also predictions."""
        maps = [
            torch.cat((box(x), scores(x)), dim=1)  # (B, 4R + C, H_i, W_i)
            for box, scores, x in zip(self.cv2, self.cv3, features, strict=True)
        ]
        return maps if self.training else Detections(self.decode(maps), maps)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Decode raw maps to predictions.

        Args:
            maps: Three of (B, 4R + C, H_i, W_i), finest level first.

        Returns:
            (B, 4 + C, A) as :class:`Detections` describes them; float32 for half-precision maps.
        """
        points, strides = make_anchors(maps, STRIDES)  # (A, 2), (A, 1)
        joined = torch.cat([level.flatten(2) for level in maps], dim=2)  # (B, 4R + C, A)
        distribution, logits = joined[:, : 4 * self.reg_max], joined[:, 4 * self.reg_max :]
        distances = self.dfl(distribution).transpose(1, 2)  # (B, A, 4)
        boxes_xywh = xyxy2xywh(dist2bbox(distances, points) * strides)  # (B, A, 4), pixels
        return torch.cat((boxes_xywh.transpose(1, 2), logits.sigmoid()), dim=1)


def _branch(c_in: int, hidden: int, c_out: int, bias: float) -> nn.Sequential:
    """Create three convolutions; the biases of the last are ``bias``."""
    last = nn.Conv2d(hidden, c_out, 1)
    nn.init.constant_(cast("Tensor", last.bias), bias)
    return nn.Sequential(Conv(c_in, hidden, 3), Conv(hidden, hidden, 3), last)

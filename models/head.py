"""The detection head: box distributions and class logits of every level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from yolo_assigner.models.blocks import DFL, Conv
from yolo_loss.anchors import make_anchors
from yolo_loss.boxes import dist2bbox, xyxy2xywh

# Pixels per cell of the usual three levels.
STRIDES = (8, 16, 32)

# Raw maps of a head with two branches, by the branches' names ``one2many`` and ``one2one``.
BranchMaps = dict[str, list[Tensor]]


class Detections(NamedTuple):
    """Output of the detector in eval mode.

    Attributes:
        predictions: (B, 4 + C, A): centre x, centre y, width, height in pixels, then class probabilities.
        maps: The head's raw maps, as in train mode: per level (B, 4R + C, H_i, W_i).
    """

    predictions: Tensor
    maps: list[Tensor]


class EndToEndDetections(NamedTuple):
    """Output of a detector with two branches in eval mode.

    Attributes:
        predictions: (B, 4 + C, A) of the one-to-one branch, as :class:`Detections` describes them. No object is meant
            to be reported twice, so they need no non-maximum suppression.
        maps: Both branches' raw maps, as in train mode: ``one2many`` and ``one2one``, each as in :class:`Detections`.
    """

    predictions: Tensor
    maps: BranchMaps


class Detect(nn.Module):
    """Detection head: for each level convolutions for box distributions and others for class logits.

    With ``end_to_end`` there are two branches of such convolutions, as in YOLOv10 (arXiv 2405.14458): one to be
    trained with many anchors per object, and one with a single anchor per object, whose gradient stops at the
    features. Both begin with the same weights.

    Args:
        channels: Channels of each level's features, finest level first.
        nc: Classes, C.
        reg_max: Bins per side, R; 1 means plain distances.
        strides: Pixels per cell of each level.
        end_to_end: Whether there is a one-to-one branch.

    Attributes:
        nc: Classes, C.
        reg_max: Bins per side, R.
        no: Channels of a raw map, 4R + C.
        strides: L numbers, pixels per cell of each level.
        stride: (L,) float32, the same as a tensor, which a criterion reads.
        end_to_end: Whether there is a one-to-one branch.
    """

    stride: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        nc: int,
        reg_max: int,
        strides: Sequence[int] = STRIDES,
        *,
        end_to_end: bool = False,
    ) -> None:
        super().__init__()
        self.nc, self.reg_max, self.no = nc, reg_max, nc + 4 * reg_max
        # Decoding uses these instead of the buffer, because an exported graph cannot read a tensor's values.
        self.strides = tuple(strides)
        self.register_buffer("stride", torch.tensor(strides, dtype=torch.float32), persistent=False)
        box_hidden = max(16, channels[0] // 4, 4 * reg_max)
        class_hidden = max(channels[0], min(nc, 100))
        self.cv2 = nn.ModuleList(_branch(c, box_hidden, 4 * reg_max, 1.0) for c in channels)
        # The initial class probability corresponds to five objects of each class per level of a 640-pixel image.
        self.cv3 = nn.ModuleList(
            _branch(c, class_hidden, nc, math.log(5 / nc / (640 / s) ** 2))
            for c, s in zip(channels, strides, strict=True)
        )
        self.dfl = DFL(reg_max) if reg_max > 1 else nn.Identity()
        self.end_to_end = end_to_end
        if end_to_end:
            self.one2one_cv2, self.one2one_cv3 = deepcopy(self.cv2), deepcopy(self.cv3)

    def forward(self, features: list[Tensor]) -> list[Tensor] | BranchMaps | Detections | EndToEndDetections:
        """Compute raw maps of the levels' features (B, c_i, H_i, W_i).

        Args:
            features: One map per level, finest first.

        Returns:
            In train mode the raw maps (B, 4R + C, H_i, W_i); with two branches a dict of those of ``one2many`` and
            those of ``one2one``. In eval mode :class:`Detections` or :class:`EndToEndDetections`.
        """
        maps = _raw_maps(features, self.cv2, self.cv3)
        if not self.end_to_end:
            return maps if self.training else Detections(self.decode(maps), maps)
        one2one = _raw_maps([x.detach() for x in features], self.one2one_cv2, self.one2one_cv3)
        both = {"one2many": maps, "one2one": one2one}
        return both if self.training else EndToEndDetections(self.decode(one2one), both)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Decode raw maps to predictions.

        Args:
            maps: One branch's L maps (B, 4R + C, H_i, W_i), finest level first.

        Returns:
            (B, 4 + C, A) as :class:`Detections` describes them; float32 for half-precision maps.
        """
        points, strides = make_anchors(maps, self.strides)  # (A, 2), (A, 1)
        joined = torch.cat([level.flatten(2) for level in maps], dim=2)  # (B, 4R + C, A)
        distribution, logits = joined[:, : 4 * self.reg_max], joined[:, 4 * self.reg_max :]
        distances = self.dfl(distribution).transpose(1, 2)  # (B, A, 4)
        boxes_xywh = xyxy2xywh(dist2bbox(distances, points) * strides)  # (B, A, 4), pixels
        return torch.cat((boxes_xywh.transpose(1, 2), logits.sigmoid()), dim=1)


def _raw_maps(features: Iterable[Tensor], boxes: Iterable[nn.Module], scores: Iterable[nn.Module]) -> list[Tensor]:
    return [
        torch.cat((box(x), score(x)), dim=1)  # (B, 4R + C, H_i, W_i)
        for box, score, x in zip(boxes, scores, features, strict=True)
    ]


def _branch(c_in: int, hidden: int, c_out: int, bias: float) -> nn.Sequential:
    """Create three convolutions; the biases of the last are ``bias``."""
    last = nn.Conv2d(hidden, c_out, 1)
    nn.init.constant_(cast("Tensor", last.bias), bias)
    return nn.Sequential(Conv(c_in, hidden, 3), Conv(hidden, hidden, 3), last)

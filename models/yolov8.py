"""The YOLOv8 detector in its five scales.

Layers are numbered and named as in public YOLOv8 detection state dicts (``model.0.conv.weight`` to
``model.22.dfl.conv.weight``), so these load without renaming; see :mod:`yolo_assigner.models.checkpoint`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple, cast

from torch import Tensor, nn

from yolo_assigner.models.blocks import SPPF, C2f, Concat, Conv
from yolo_assigner.models.head import STRIDES, Detect, Detections

# Source layers of the layers whose input is not the output of the previous layer.
SOURCES = {11: (10, 6), 14: (13, 4), 17: (16, 12), 20: (19, 9), 22: (15, 18, 21)}


class Scale(NamedTuple):
    """Factors of depth and width of a scale, and the largest number of channels before scaling."""

    depth: float
    width: float
    max_channels: int


SCALES = {
    "n": Scale(0.33, 0.25, 1024),
    "s": Scale(0.33, 0.50, 1024),
    "m": Scale(0.67, 0.75, 768),
    "l": Scale(1.00, 1.00, 512),
    "x": Scale(1.00, 1.25, 512),
}


@dataclass(frozen=True)
class DetectorConfig:
    """Configuration of a detector.

    Attributes:
        scale: One of ``n``, ``s``, ``m``, ``l``, ``x``.
        nc: Classes, C.
        reg_max: Bins per side of the box distribution, R; 1 means plain distances.

    Raises:
        ValueError: The scale is unknown, or a number is below 1.
    """

    scale: str = "n"
    nc: int = 80
    reg_max: int = 16

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}; choose one of {', '.join(SCALES)}")
        if self.nc < 1 or self.reg_max < 1:
            raise ValueError(f"nc is {self.nc} and reg_max is {self.reg_max}; both must be at least 1")

    def channels(self, full: int) -> int:
        """Return the number of channels for ``full`` channels at full width, rounded up to a multiple of 8."""
        scale = SCALES[self.scale]
        return math.ceil(min(full, scale.max_channels) * scale.width / 8) * 8

    def depth(self, full: int) -> int:
        """Return the number of bottlenecks for ``full`` of them at full depth."""
        return max(round(full * SCALES[self.scale].depth), 1)


class DetectionModel(nn.Module):
    """Backbone, neck and head (layers 0 to 9, 10 to 21, and 22).

    Weights are random, from torch's global generator; call ``torch.manual_seed`` first to reproduce them.

    Args:
        config: Scale, classes and bins.

    Attributes:
        model: The numbered layers; the last is the head.
        args: Gains ``box``, ``cls``, ``dfl`` of the loss, which a criterion reads; YOLOv8's defaults.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleList((*_backbone(config), *_neck(config), _head(config)))
        self.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)

    @property
    def head(self) -> Detect:
        """The detection head, the last layer."""
        return cast("Detect", self.model[-1])

    @property
    def stride(self) -> Tensor:
        """(3,) float32, pixels per cell of each level."""
        return self.head.stride

    def forward(self, images: Tensor) -> list[Tensor] | Detections:
        """Compute raw maps, and in eval mode also predictions.

        Args:
            images: (B, 3, H, W), red, green, blue in [0, 1], in the weights' dtype; H and W multiples of 32.

        Returns:
            In train mode the raw maps, (B, 4R + C, H / stride, W / stride) for each stride; in eval mode
            :class:`Detections`.

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        height, width = images.shape[-2:]
        if height % STRIDES[-1] != 0 or width % STRIDES[-1] != 0:
            raise ValueError(f"images are {height} x {width}; resize or pad both sides to multiples of {STRIDES[-1]}")
        outputs: list[Tensor] = []
        latest = images
        for index, layer in enumerate(self.model):
            latest = layer([outputs[source] for source in SOURCES[index]] if index in SOURCES else latest)
            outputs.append(latest)
        return cast("list[Tensor] | Detections", latest)


def _backbone(config: DetectorConfig) -> list[nn.Module]:
    """Create layers 0 to 9; the outputs of 4, 6 and 9 have strides 8, 16 and 32."""
    c1, c2, c3, c4, c5 = (config.channels(full) for full in (64, 128, 256, 512, 1024))
    return [
        Conv(3, c1, 3, stride=2),
        Conv(c1, c2, 3, stride=2),
        C2f(c2, c2, config.depth(3), shortcut=True),
        Conv(c2, c3, 3, stride=2),
        C2f(c3, c3, config.depth(6), shortcut=True),
        Conv(c3, c4, 3, stride=2),
        C2f(c4, c4, config.depth(6), shortcut=True),
        Conv(c4, c5, 3, stride=2),
        C2f(c5, c5, config.depth(3), shortcut=True),
        SPPF(c5, c5),
    ]


def _neck(config: DetectorConfig) -> list[nn.Module]:
    """Create layers 10 to 21: from coarse to fine maps (FPN, arXiv 1612.03144) and back (PAN, arXiv 1803.01534)."""
    c3, c4, c5 = (config.channels(full) for full in (256, 512, 1024))
    depth = config.depth(3)
    return [
        nn.Upsample(scale_factor=2.0, mode="nearest"),
        Concat(),
        C2f(c5 + c4, c4, depth, shortcut=False),
        nn.Upsample(scale_factor=2.0, mode="nearest"),
        Concat(),
        C2f(c4 + c3, c3, depth, shortcut=False),
        Conv(c3, c3, 3, stride=2),
        Concat(),
        C2f(c3 + c4, c4, depth, shortcut=False),
        Conv(c4, c4, 3, stride=2),
        Concat(),
        C2f(c4 + c5, c5, depth, shortcut=False),
    ]


def _head(config: DetectorConfig) -> Detect:
    c3, c4, c5 = (config.channels(full) for full in (256, 512, 1024))
    return Detect((c3, c4, c5), config.nc, config.reg_max)

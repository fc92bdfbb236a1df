"""The YOLOv8 detector in its five scales, on three pyramids, with one or two branches in its head.

Layers are numbered in the order in which they are computed. With one branch and the pyramids ``p5`` and ``p2`` names
and shapes are those of public YOLOv8 detection state dicts (``model.0.conv.weight`` to ``model.22.dfl.conv.weight``,
or to ``model.28`` with ``p2``), so these load without renaming; see :mod:`yolo_assigner.models.checkpoint`. The neck
of public ``p6`` models has other blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple, cast

from torch import Tensor, nn

from yolo_assigner.models.blocks import SPPF, C2f, Concat, Conv
from yolo_assigner.models.head import STRIDES, BranchMaps, Detect, Detections, EndToEndDetections


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


class Stage(NamedTuple):
    """A stage of the backbone, which halves the map; the first has stride 2.

    Attributes:
        channels: Output channels at full width.
        depth: Bottlenecks at full depth; 0: the convolution alone.
    """

    channels: int
    depth: int


class Pyramid(NamedTuple):
    """A backbone, and the levels that neck and head have of it.

    Attributes:
        strides: Pixels per cell of the levels, finest first; each is twice the one before.
        stages: The stages up to the coarsest level.
    """

    strides: tuple[int, ...]
    stages: tuple[Stage, ...]


_FINE = (Stage(64, 0), Stage(128, 3), Stage(256, 6), Stage(512, 6))  # strides 2 to 16

PYRAMIDS = {
    "p5": Pyramid(STRIDES, (*_FINE, Stage(1024, 3))),
    "p2": Pyramid((4, *STRIDES), (*_FINE, Stage(1024, 3))),
    "p6": Pyramid((*STRIDES, 64), (*_FINE, Stage(768, 3), Stage(1024, 3))),
}


@dataclass(frozen=True)
class DetectorConfig:
    """Configuration of a detector.

    Attributes:
        scale: One of ``n``, ``s``, ``m``, ``l``, ``x``.
        nc: Classes, C.
        reg_max: Bins per side of the box distribution, R; 1 means plain distances.
        pyramid: Levels of the head: ``p5``, strides 8, 16, 32; ``p2``, also 4, for small objects; ``p6``, also 64, for
            large images.
        end_to_end: Whether the head has a one-to-one branch beside the one-to-many branch.

    Raises:
        ValueError: The scale or the pyramid is unknown, or a number is below 1.
    """

    scale: str = "n"
    nc: int = 80
    reg_max: int = 16
    pyramid: str = "p5"
    end_to_end: bool = False

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}; choose one of {', '.join(SCALES)}")
        if self.nc < 1 or self.reg_max < 1:
            raise ValueError(f"nc is {self.nc} and reg_max is {self.reg_max}; both must be at least 1")

        if self.pyramid not in PYRAMIDS:
            raise ValueError(f"pyramid is {self.pyramid!r}; choose one of {', '.join(PYRAMIDS)}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level."""
        return PYRAMIDS[self.pyramid].strides

    def channels(self, full: int) -> int:
        """Return the number of channels for ``full`` channels at full width, rounded up to a multiple of 8."""
        scale = SCALES[self.scale]
        return math.ceil(min(full, scale.max_channels) * scale.width / 8) * 8

    def depth(self, full: int) -> int:
        """Return the number of bottlenecks for ``full`` of them at full depth."""
        return max(round(full * SCALES[self.scale].depth), 1)


class Layer(NamedTuple):
    """A numbered layer.

    Attributes:
        module: The layer.
        sources: Numbers of the layers whose outputs it gets, as a list; empty: the output of the layer before.
    """

    module: nn.Module
    sources: tuple[int, ...] = ()


class DetectionModel(nn.Module):
    """Backbone, neck and head (with the usual pyramid layers 0 to 9, 10 to 21, and 22).

    Weights are random, from torch's global generator; call ``torch.manual_seed`` first to reproduce them.

    Args:
        config: Scale, classes, bins, pyramid and branches.

    Attributes:
        model: The numbered layers; the last is the head.
        args: Gains ``box``, ``cls``, ``dfl`` of the loss, which a criterion reads; YOLOv8's defaults.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        layers = _layers(config)
        self.model = nn.ModuleList(layer.module for layer in layers)
        self.sources = tuple(layer.sources for layer in layers)
        self.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)

    @property
    def head(self) -> Detect:
        """The detection head, the last layer."""
        return cast("Detect", self.model[-1])

    @property
    def stride(self) -> Tensor:
        """(L,) float32, pixels per cell of each level."""
        return self.head.stride

    def forward(self, images: Tensor) -> list[Tensor] | BranchMaps | Detections | EndToEndDetections:
        """Compute raw maps, and in eval mode also predictions.

        Args:
            images: (B, 3, H, W), red, green, blue in [0, 1], in the weights' dtype; H and W multiples of the largest
                stride, 32 or for ``p6`` 64.

        Returns:
            In train mode the raw maps, (B, 4R + C, H / stride, W / stride) for each stride, with two branches a dict
            of both branches' maps; in eval mode :class:`Detections` or :class:`EndToEndDetections`.

        Raises:
            ValueError: H or W is not such a multiple.
        """
        height, width = images.shape[-2:]
        step = self.config.strides[-1]
        if height % step != 0 or width % step != 0:
            raise ValueError(f"images are {height} x {width}; resize or pad both sides to multiples of {step}")
        outputs: list[Tensor] = []
        latest = images
        for layer, sources in zip(self.model, self.sources, strict=True):
            latest = layer([outputs[source] for source in sources] if sources else latest)
            outputs.append(latest)
        return cast("list[Tensor] | BranchMaps | Detections | EndToEndDetections", latest)


def _layers(config: DetectorConfig) -> list[Layer]:
    """Create all layers in their order, from which each gets its number."""
    strides, stages = PYRAMIDS[config.pyramid]
    layers = _backbone(config, stages)
    # The levels are the last stages. Stage i ends with layer 2 i, except that the SPPF follows the last one.
    first = len(stages) - len(strides)
    channels = [config.channels(stage.channels) for stage in stages[first:]]
    numbers = [*range(2 * first, 2 * len(stages) - 2, 2), len(layers) - 1]
    _add_neck(layers, channels, numbers, config.depth(3))
    head = Detect(channels, config.nc, config.reg_max, strides, end_to_end=config.end_to_end)
    return [*layers, Layer(head, tuple(numbers))]


def _backbone(config: DetectorConfig, stages: tuple[Stage, ...]) -> list[Layer]:
    """Create the backbone; with the usual pyramid these are layers 0 to 9."""
    modules: list[nn.Module] = []
    channels = 3
    for stage in stages:
        c_in, channels = channels, config.channels(stage.channels)
        modules.append(Conv(c_in, channels, 3, stride=2))
        if stage.depth:
            modules.append(C2f(channels, channels, config.depth(stage.depth), shortcut=True))
    return [Layer(module) for module in (*modules, SPPF(channels, channels))]


def _add_neck(layers: list[Layer], channels: list[int], numbers: list[int], depth: int) -> None:
    """Add layers from coarse to fine maps (FPN, arXiv 1612.03144) and back (PAN, arXiv 1803.01534).

    Args:
        layers: The backbone, to which the neck is added.
        channels: Of each level, finest first.
        numbers: Each level's latest layer, finest first; in the end those that the head gets.
        depth: Bottlenecks of a stage.
    """
    coarsest = len(channels) - 1
    for level in reversed(range(coarsest)):
        layers.append(Layer(nn.Upsample(scale_factor=2.0, mode="nearest")))
        _join(layers, numbers, level, (channels[level + 1] + channels[level], channels[level]), depth)
    for level in range(1, coarsest + 1):
        layers.append(Layer(Conv(channels[level - 1], channels[level - 1], 3, stride=2)))
        _join(layers, numbers, level, (channels[level - 1] + channels[level], channels[level]), depth)


def _join(layers: list[Layer], numbers: list[int], level: int, channels: tuple[int, int], depth: int) -> None:
    """Join the latest layer with a level's own one, by a C2f of these input and output channels."""
    layers.append(Layer(Concat(), (len(layers) - 1, numbers[level])))
    layers.append(Layer(C2f(*channels, depth, shortcut=False)))
    numbers[level] = len(layers) - 1

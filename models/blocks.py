"""Building blocks of a YOLOv8 network, smallest first.

Attribute names (``conv``, ``bn``, ``cv1``, ``m``) are those of public YOLOv8 state dicts, so such weights load without
renaming. Inputs and outputs of a block are feature maps (B, channels, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    """Convolution without bias, batch normalization, SiLU; (B, c_in, H, W) to (B, c_out, ceil(H / s), ceil(W / s)).

    Args:
        c_in: Input channels.
        c_out: Output channels.
        kernel: Side of the kernel, odd; the padding keeps the size at stride 1.
        stride: Step of the kernel, the s above.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
        # Public weights were trained with these values, which are not torch's defaults.
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        """Apply convolution, normalization and activation."""
        return nn.functional.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3 x 3 convolutions, added to the input if ``shortcut``; (B, channels, H, W) keeps its shape."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels, 3)
        self.cv2 = Conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Apply both convolutions."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Cross-stage block: one half of the channels runs through bottlenecks; all stages are concatenated.

    (B, c_in, H, W) to (B, c_out, H, W). The two paths are from CSPNet, arXiv 1911.11929.

    Args:
        c_in: Input channels.
        c_out: Output channels.
        depth: Number of bottlenecks.
        shortcut: Whether each adds its input.
    """

    def __init__(self, c_in: int, c_out: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, 2 * hidden)
        self.cv2 = Conv((2 + depth) * hidden, c_out)
        self.m = nn.ModuleList(Bottleneck(hidden, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Split, pass one half through the bottlenecks, concatenate all stages."""
        stages = list(self.cv1(x).chunk(2, dim=1))  # two of (B, hidden, H, W)
        for bottleneck in self.m:
            stages.append(bottleneck(stages[-1]))
        joined: Tensor = self.cv2(torch.cat(stages, dim=1))  # (B, (2 + depth) * hidden, H, W) -> (B, c_out, H, W)
        return joined


class SPPF(nn.Module):
    """Spatial pyramid pooling, fast: three 5 x 5 max pools in a row see 5, 9 and 13 cells (arXiv 1406.4729).

    (B, c_in, H, W) to (B, c_out, H, W).
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(4 * hidden, c_out)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """Pool once, twice and three times, and concatenate."""
        stages = [self.cv1(x)]
        for _ in range(3):
            stages.append(self.m(stages[-1]))
        joined: Tensor = self.cv2(torch.cat(stages, dim=1))  # (B, 4 * hidden, H, W) -> (B, c_out, H, W)
        return joined


class Concat(nn.Module):
    """Concatenates maps of one size along the channels; a module so that it counts as a numbered layer."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Concatenate (B, c_1, H, W), (B, c_2, H, W), ... to (B, c_1 + c_2 + ..., H, W)."""
        return torch.cat(maps, dim=1)


class DFL(nn.Module):
    """Expectation of each side's distribution over R bins (GFL, arXiv 2006.04388).

    The bin numbers are the frozen weight of a 1 x 1 convolution, as in public state dicts.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data.copy_(torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1))
        self.bins = bins

    def forward(self, distribution: Tensor) -> Tensor:
        """Convert logits (B, 4R, A), side-major, to distances (B, 4, A) in grid units."""
        batch, _, points = distribution.shape
        logits = distribution.reshape(batch, 4, self.bins, points).transpose(1, 2)  # (B, R, 4, A)
        distances: Tensor = self.conv(logits.softmax(dim=1)).squeeze(1)  # (B, 4, A)
        return distances

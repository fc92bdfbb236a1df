"""Detectors that see something without having been trained."""

from __future__ import annotations

import torch
from torch import nn

from yolo_assigner.export.samples import Case, pyramid, sample_detector_inputs
from yolo_assigner.models import DetectionModel, DetectorConfig

SEED = 0
SPREAD = 0.3
# Of class logits; a new detector's, of background everywhere, are far below 0.
BIAS = -1.0


@torch.no_grad()
def lively_detector(config: DetectorConfig) -> DetectionModel:
    """A detector with random normalisations, in eval mode.

    A new detector says nearly the same of every anchor, for its maps are little but the biases of its head. Here every
    layer passes on differences: normalisations get gains and shifts of their own and measured statistics.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        detector = DetectionModel(config)
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.add_(SPREAD * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.add_(SPREAD * torch.randn(layer.bias.shape, generator=generator))
    for name, bias in detector.head.named_parameters():
        if "cv3." in name and name.endswith(".2.bias"):
            bias.fill_(BIAS)
    side = 5 * config.strides[-1]
    case = Case(2, 0, pyramid(side, side, config.strides), config.nc)
    seen = [sample_detector_inputs(case, config.strides, seed)[0] for seed in range(3)]
    torch.optim.swa_utils.update_bn(seen, detector)
    return detector.eval()

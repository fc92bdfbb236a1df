"""The detector of a state dict, whose configuration follows from its tensors' shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from yolo_assigner.models import (
    PYRAMIDS,
    SCALES,
    DetectionModel,
    Detections,
    DetectorConfig,
    EndToEndDetections,
    load_checkpoint,
    read_state_dict,
)

HEAD_BIAS = re.compile(r"model\.\d+\.cv([23])\.0\.2\.bias")
SIDES = 4


def load_detector(path: Path) -> DetectionModel:
    """Load a detector in float32 and eval mode.

    Args:
        path: A state dict that ``models.read_state_dict`` reads.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no state dict of a detector of ``models``.
    """
    config = detector_config(read_state_dict(path), path)
    detector = DetectionModel(config)
    load_checkpoint(detector, path)
    return detector.float().eval().requires_grad_(False)


def detector_config(state: Mapping[str, Tensor], path: Path) -> DetectorConfig:
    """Find the configuration whose detector has tensors of these names and shapes.

    Args:
        state: The state dict.
        path: Its file, for the error.

    Raises:
        ValueError: There is none.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    biases = {match[1]: found[name][0] for name in found if (match := HEAD_BIAS.fullmatch(name))}
    if set(biases) == {"2", "3"} and biases["2"] % SIDES == 0:
        end_to_end = any(".one2one_cv2." in name for name in found)
        for scale in SCALES:
            for pyramid in PYRAMIDS:
                config = DetectorConfig(scale, biases["3"], biases["2"] // SIDES, pyramid, end_to_end)
                if _shapes(config) == found:
                    return config
    raise ValueError(
        f"{path} is no state dict of a YOLOv8 detector of yolo_assigner.models (scales {', '.join(SCALES)}, pyramids "
        f"{', '.join(PYRAMIDS)}); give one, or store the head's maps and use --predictions"
    )


def raw_maps(detector: DetectionModel, images: Tensor) -> list[Tensor]:
    """Compute the head's raw maps (B, 4R + C, H_i, W_i); of two branches those of one2many, which learns most."""
    with torch.no_grad():
        found = detector(images)
    if isinstance(found, EndToEndDetections):
        return found.maps["one2many"]
    assert isinstance(found, Detections)  # noqa: S101  (the detector is in eval mode)
    return found.maps


def _shapes(config: DetectorConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        detector = DetectionModel(config)
    return {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}

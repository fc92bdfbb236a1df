"""The configuration of a detector follows from its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from yolo_assigner.audit.detector import detector_config
from yolo_assigner.models import DetectionModel, DetectorConfig

CONFIGS = (
    DetectorConfig("n", nc=1),
    DetectorConfig("s", nc=80, reg_max=1),
    DetectorConfig("n", nc=3, reg_max=8, pyramid="p2"),
    DetectorConfig("m", nc=2, pyramid="p6"),
    DetectorConfig("n", nc=5, end_to_end=True),
)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_configuration_is_found(config: DetectorConfig) -> None:
    with torch.device("meta"):
        state = DetectionModel(config).state_dict()
    assert detector_config(state, Path("best.pt")) == config


def test_other_weights_are_refused() -> None:
    with torch.device("meta"):
        state = DetectionModel(CONFIGS[0]).state_dict()
    del state["model.0.conv.weight"]
    with pytest.raises(ValueError, match=r"best\.pt is no state dict of a YOLOv8 detector .* use --predictions"):
        detector_config(state, Path("best.pt"))

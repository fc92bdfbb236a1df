"""The detector of a ``detector_loss`` model: from a checkpoint when it is exported, from the ONNX file later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from yolo_assigner.export.contract import ContractError
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.models import DetectionModel, DetectorConfig, load_checkpoint
from yolo_assigner.models.head import STRIDES

# The graph's initializers are the detector's state dict under this prefix.
PREFIX = "detector."
# Counts training steps; nothing of the eval mode reads it, so the graph has none.
COUNTER = "num_batches_tracked"


def check_source(kind: str, numbers: Hyperparameters, weights: Path | None) -> None:
    """Check that a detector's kind comes with all that describes one, and other kinds without.

    Args:
        kind: Of the model to export.
        numbers: Its hyper-parameters.
        weights: The detector's checkpoint.

    Raises:
        ValueError: Something is missing or too much, or the strides are not the network's.
    """
    if kind != "detector_loss":
        for name, value in (("weights", weights), ("scale", numbers.scale)):
            if value is not None:
                raise ValueError(f"{name} is {value}, but {kind} has no detector; leave it out or export detector_loss")
        return
    if weights is None or numbers.scale is None:
        raise ValueError("detector_loss holds a detector; give its state dict (--weights FILE) and scale (--scale n)")
    if not weights.is_file():
        raise ValueError(f"weights is {weights}, which is no file; give a state dict that torch or safetensors wrote")
    if numbers.strides != STRIDES:
        raise ValueError(
            f"strides is {numbers.strides}, but the detector's maps have {STRIDES}; leave strides out for detector_loss"
        )


def detector_from_checkpoint(path: Path, numbers: Hyperparameters) -> DetectionModel:
    """The detector of a state dict, float32, in eval mode.

    Args:
        path: What ``models.load_checkpoint`` reads.
        numbers: Scale, classes and bins are taken from there.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The scale is unknown, the file is no state dict, or it is that of another detector.
    """
    detector = _build(numbers)
    load_checkpoint(detector, path)
    return detector


def detector_from_onnx(path: Path, numbers: Hyperparameters) -> DetectionModel:
    """The detector inside an exported ``detector_loss`` model, float32, in eval mode.

    Args:
        path: The ONNX file.
        numbers: Of its contract.

    Raises:
        ContractError: The file holds other weights than the contract's detector has.
    """
    detector = _build(numbers)
    weights = load_detector_weights(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in _weights(detector).items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
        raise ContractError(
            f"{path} does not hold a detector of scale {numbers.scale}, {numbers.num_classes} classes and reg_max "
            f"{numbers.reg_max}; export it again with `yolo-assigner export onnx --model detector_loss`"
        )
    detector.load_state_dict(weights, strict=False)
    return detector


def load_detector_weights(path: Path) -> dict[str, Tensor]:
    """The detector's weights inside an exported ``detector_loss`` model.

    Args:
        path: The ONNX file, of any precision.

    Returns:
        Its state dict by the names of ``models.DetectionModel``, without the counters of training steps. All are
        float32, which holds 16-bit weights exactly.
    """
    return _initializers(onnx.load(path))


def check_weights(model: onnx.ModelProto, detector: DetectionModel) -> None:
    """Check that a graph holds every weight unchanged, so that it may stand for the checkpoint.

    Args:
        model: As it is to be written, in float32.
        detector: Whose weights it must hold.

    Raises:
        RuntimeError: The exporter changed or dropped one.
    """
    written = _initializers(model)
    for name, tensor in _weights(detector).items():
        # To the bit: a number that is none equals nothing.
        if name not in written or not torch.equal(written[name].view(torch.int32), tensor.view(torch.int32)):
            raise RuntimeError(f"weight {name} is not in the exported graph as it is in the detector")


def _build(numbers: Hyperparameters) -> DetectionModel:
    config = DetectorConfig(str(numbers.scale), numbers.num_classes, numbers.reg_max)
    return DetectionModel(config).eval().requires_grad_(False)


def _weights(detector: DetectionModel) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in detector.state_dict().items() if not name.endswith(COUNTER)}


def _initializers(model: onnx.ModelProto) -> dict[str, Tensor]:
    found = (tensor for tensor in model.graph.initializer if tensor.name.startswith(PREFIX))
    return {
        tensor.name.removeprefix(PREFIX): torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype(np.float32))
        for tensor in found
    }

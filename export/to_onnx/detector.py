"""The detector of a model that holds one, loaded from a checkpoint or from the exported ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from yolo_assigner.export.contract import DETECTOR_KINDS, ContractError
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.models import PYRAMIDS, DetectionModel, DetectorConfig, load_checkpoint

# Prefix of the detector's state dict among the graph's initializers.
PREFIX = "detector."
# Suffix of counters of training steps, which eval mode does not read and the graph does not hold.
COUNTER = "num_batches_tracked"


def check_source(kind: str, hyperparameters: Hyperparameters, weights: Path | None) -> None:
    """Check that weights and scale are given for a kind with a detector, and only then.

    Args:
        kind: Kind of the model to export.
        hyperparameters: Its hyper-parameters.
        weights: The detector's checkpoint.

    Raises:
        ValueError: Weights or scale are missing or superfluous, or no detector has these strides.
    """
    end_to_end = hyperparameters.end_to_end or None
    if kind not in DETECTOR_KINDS:
        for name, value in (("weights", weights), ("scale", hyperparameters.scale), ("end_to_end", end_to_end)):
            if value is not None:
                raise ValueError(f"{name} is {value}, but {kind} has no detector; leave it out or export detector_loss")
        return
    if weights is None or hyperparameters.scale is None:
        raise ValueError(f"{kind} holds a detector; give its state dict (--weights FILE) and scale (--scale n)")
    if not weights.is_file():
        raise ValueError(f"weights is {weights}, which is no file; give a state dict that torch or safetensors wrote")
    detector_config(hyperparameters)


def detector_config(hyperparameters: Hyperparameters) -> DetectorConfig:
    """Return the configuration of a model's detector, whose pyramid is the one with the strides.

    Raises:
        ValueError: The scale is unknown, or no pyramid has the strides.
    """
    strides = hyperparameters.strides
    for name, pyramid in PYRAMIDS.items():
        if pyramid.strides == strides:
            scale, classes, bins = str(hyperparameters.scale), hyperparameters.num_classes, hyperparameters.reg_max
            return DetectorConfig(scale, classes, bins, name, hyperparameters.end_to_end)
    known = " or ".join(str(pyramid.strides) for pyramid in PYRAMIDS.values())
    raise ValueError(f"strides is {strides}, but the maps of detectors have {known}; give those of the weights")


def detector_from_checkpoint(path: Path, hyperparameters: Hyperparameters) -> DetectionModel:
    """Load a detector from a state dict, in float32 and eval mode.

    Args:
        path: A file that ``models.load_checkpoint`` reads.
        hyperparameters: Supplies scale, number of classes, bins, branches and, by the strides, the pyramid.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The scale is unknown, or the file is not a state dict of this detector.
    """
    detector = _build(hyperparameters)
    load_checkpoint(detector, path)
    return detector


def detector_from_onnx(path: Path, hyperparameters: Hyperparameters) -> DetectionModel:
    """Load the detector from an exported model that holds one, in float32 and eval mode.

    Args:
        path: The ONNX file.
        hyperparameters: Hyper-parameters of its contract.

    Raises:
        ContractError: The weights do not fit the detector that the contract describes.
    """
    detector = _build(hyperparameters)
    weights = load_detector_weights(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in _weights(detector).items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
        config = detector.config
        branches = 2 if config.end_to_end else 1
        raise ContractError(
            f"{path} does not hold a detector of scale {config.scale}, {config.nc} classes, reg_max {config.reg_max}, "
            f"strides {config.strides} and {branches} branches; export it again with "
            "`yolo-assigner export onnx --model detector_loss`"
        )
    detector.load_state_dict(weights, strict=False)
    return detector


def load_detector_weights(path: Path) -> dict[str, Tensor]:
    """Load the detector's weights from an exported model that holds one.

    Args:
        path: The ONNX file, in any precision.

    Returns:
        The state dict of ``models.DetectionModel`` without the counters of training steps, in float32, which
        represents 16-bit weights exactly.
    """
    return _initializers(onnx.load(path))


def check_weights(model: onnx.ModelProto, detector: DetectionModel) -> None:
    """Check that a graph holds every weight of a detector unchanged.

    Args:
        model: The exported model, in float32.
        detector: The detector that was exported.

    Raises:
        RuntimeError: The exporter changed or dropped a weight.
    """
    written = _initializers(model)
    for name, tensor in _weights(detector).items():
        # Bits are compared because NaN does not equal itself.
        if name not in written or not torch.equal(written[name].view(torch.int32), tensor.view(torch.int32)):
            raise RuntimeError(f"weight {name} is not in the exported graph as it is in the detector")


def _build(hyperparameters: Hyperparameters) -> DetectionModel:
    return DetectionModel(detector_config(hyperparameters)).eval().requires_grad_(False)


def _weights(detector: DetectionModel) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in detector.state_dict().items() if not name.endswith(COUNTER)}


def _initializers(model: onnx.ModelProto) -> dict[str, Tensor]:
    found = (tensor for tensor in model.graph.initializer if tensor.name.startswith(PREFIX))
    return {
        tensor.name.removeprefix(PREFIX): torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype(np.float32))
        for tensor in found
    }

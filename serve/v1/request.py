"""From the typed JSON of the v1 JSON API to a model's inputs."""

from __future__ import annotations

import base64
import binascii
import math
from typing import NamedTuple

import numpy as np

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.detection.collate import class_inputs, pad_ground_truth
from yolo_assigner.serve.detection.grid import anchor_points, count_points, level_sizes, maps_from_flat, strides_of
from yolo_assigner.serve.detection.validate import channels_of, check_outputs
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.loading import LoadedModels
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.v1.schemas import AssignRequest, ExplainRequest, LossRequest, PackedTensor
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.tensors import check_size
from yolo_loss.checks import check_batch_size, check_maps, check_pyramid


class DetectionInputs(NamedTuple):
    """The inputs that a request describes.

    Attributes:
        arrays: Inputs of the model by name, not checked against its contract yet.
        image_size: (height, width) in pixels.
        strides: Pixels per cell, one per level.
        level_sizes: Cells (H_i, W_i), one per level.
        outputs: Outputs of the model that the caller requested, each once.
    """

    arrays: dict[str, Array]
    image_size: tuple[int, int]
    strides: list[int]
    level_sizes: list[tuple[int, int]]
    outputs: list[str]


def choose_model(registry: LoadedModels, request: LossRequest) -> Model:
    """Find the model that a request names, or the first one of the kind that its predictions need.

    Raises:
        NotFoundError: There is no such model.
        ModelFailedError: The model could not be loaded.
        BadRequestError: The named model is of another kind.
    """
    kind, name = _kind_of(request), request.model
    if name is not None:
        registry.find(name)
    models = {model.contract.name: model for model in registry.some(f"kind {kind}", lambda one: one.kind == kind)}
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise BadRequestError(f"model {name!r} is not of kind {kind}; those are {', '.join(models)}")
    return models[name]


def read_inputs(contract: Contract, request: LossRequest) -> DetectionInputs:
    """Make a model's inputs.

    Args:
        contract: Contract of the model that :func:`choose_model` found.
        request: A request for the loss or for the assignment.

    Raises:
        BadRequestError: The parts of the request do not fit each other or the model.
    """
    try:
        if isinstance(request, AssignRequest) and _is_decoded(request):
            return _decoded_inputs(contract, request)
        if isinstance(request, ExplainRequest) and request.images is not None:
            return _image_inputs(contract, request)
        return _raw_inputs(contract, request)
    except ValueError as error:  # of the grid, the padding and the checks that the client shares
        raise BadRequestError(str(error)) from error


def _kind_of(request: LossRequest) -> str:
    if isinstance(request, ExplainRequest):
        return "explain" if request.images is None else "detector_explain"
    return "assigner" if _is_decoded(request) else "loss"


def _is_decoded(request: LossRequest) -> bool:
    return isinstance(request, AssignRequest) and (request.pd_scores is not None or request.pd_bboxes is not None)


def _raw_inputs(contract: Contract, request: LossRequest) -> DetectionInputs:
    """Inputs of a loss model: maps as they are, or made from flattened predictions."""
    if isinstance(request, AssignRequest) and request.strides is not None:
        raise BadRequestError("strides goes with pd_scores and pd_bboxes; a loss model has its own")
    strides = strides_of(contract)
    if request.feats is not None and request.pred_distri is None and request.pred_scores is None:
        named = {f"feats[{level}]": read_tensor(f"feats[{level}]", feat, 4) for level, feat in enumerate(request.feats)}
        check_maps(named, strides, channels_of(contract))
        check_pyramid(named, strides)
        maps = list(named.values())
        height, width = (size * strides[0] for size in maps[0].shape[2:])
    elif request.feats is None and None not in (request.pred_distri, request.pred_scores, request.imgsz):
        assert request.imgsz is not None  # noqa: S101 - for the type checker
        height, width = request.imgsz
        distri = read_tensor("pred_distri", request.pred_distri, 3)
        maps = maps_from_flat(distri, read_tensor("pred_scores", request.pred_scores, 3), (height, width), strides)
    else:
        raise BadRequestError("give either feats, or all of pred_distri, pred_scores and imgsz")
    arrays = {f"feat_{level}": feat for level, feat in enumerate(maps)}
    sizes = [(rows, columns) for _, _, rows, columns in (level.shape for level in maps)]
    predictions = DetectionInputs(arrays, (height, width), strides, sizes, request.outputs)
    return _with_truth(predictions, contract, request, maps[0].shape[0], contract.hyperparameters["num_classes"])


def _image_inputs(contract: Contract, request: ExplainRequest) -> DetectionInputs:
    """Inputs of a model with a detector."""
    if (request.feats, request.pred_distri, request.pred_scores, request.imgsz) != (None,) * 4:
        raise BadRequestError("images go in the place of predictions; give either, and imgsz with pred_distri only")
    images = read_tensor("images", request.images, 4)
    height, width = images.shape[2:]
    strides = strides_of(contract)
    sizes = level_sizes((height, width), strides)
    predictions = DetectionInputs({"images": images}, (height, width), strides, sizes, request.outputs)
    return _with_truth(predictions, contract, request, len(images), contract.hyperparameters["num_classes"])


def _decoded_inputs(contract: Contract, request: AssignRequest) -> DetectionInputs:
    """Inputs of an assigner model."""
    if request.pd_scores is None or request.pd_bboxes is None or request.imgsz is None:
        raise BadRequestError("decoded predictions are pd_scores, pd_bboxes and imgsz; give all three")
    if request.feats is not None or request.pred_distri is not None or request.pred_scores is not None:
        raise BadRequestError("give either decoded predictions (pd_scores, pd_bboxes) or raw ones, not both")
    scores = read_tensor("pd_scores", request.pd_scores, 3)
    strides = request.strides or strides_of(contract)
    points = count_points(request.imgsz, strides)
    if scores.shape[1] != points:
        raise BadRequestError(
            f"pd_scores has {scores.shape[1]} anchor points, but an image of {request.imgsz[0]} x {request.imgsz[1]} "
            f"has {points} at strides {strides}"
        )
    arrays = {
        "pd_scores": scores,
        "pd_bboxes": read_tensor("pd_bboxes", request.pd_bboxes, 3),
        "anc_points": anchor_points(request.imgsz, strides),
    }
    sizes = level_sizes(request.imgsz, strides)
    predictions = DetectionInputs(arrays, request.imgsz, list(strides), sizes, request.outputs)
    return _with_truth(predictions, contract, request, scores.shape[0], scores.shape[2])


def _with_truth(
    predictions: DetectionInputs, contract: Contract, request: LossRequest, images: int, classes: int
) -> DetectionInputs:
    """Add the padded ground truth to inputs that are predictions alone."""
    check_batch_size(images)
    batch = request.batch
    truth = pad_ground_truth(batch.batch_idx, batch.cls, batch.bboxes, images, predictions.image_size, classes)
    check_outputs(contract, request.outputs)
    outputs = list(dict.fromkeys(request.outputs))
    further = {name: getattr(batch, name) for name in ("class_weights", "ignore_idx", "ignore_bboxes")}
    given = class_inputs(further, images, predictions.image_size, classes)
    arrays = predictions.arrays | truth._asdict() | _neutral_inputs(contract, images) | given
    return predictions._replace(arrays=arrays, outputs=outputs)


def _neutral_inputs(contract: Contract, images: int) -> dict[str, Array]:
    """What changes nothing, for the inputs of a model beside ground truth: class weights of 1, and no region."""
    neutral: dict[str, Array] = {
        "class_weights": np.ones((images, contract.hyperparameters["num_classes"]), np.float32),
        "ignore_bboxes": np.zeros((images, 0, 4), np.float32),
        "mask_ignore": np.zeros((images, 0, 1), np.bool_),
    }
    return {spec.name: neutral[spec.name] for spec in contract.inputs if spec.name in neutral}


def read_tensor(name: str, value: object, rank: int) -> Array:
    """Read an array from either form of a tensor.

    Args:
        name: Its place in the request, for errors.
        value: Nested lists of numbers, or a packed tensor.
        rank: Number of axes.

    Returns:
        A float32 array of that rank.

    Raises:
        BadRequestError: The lists are irregular, or the bytes do not fit shape and dtype.
    """
    if isinstance(value, PackedTensor):
        return _unpack(name, value, rank)
    try:
        array = np.array(value, np.float32)
    except ValueError as error:
        raise BadRequestError(f"{name} is not a regular list, its rows differ in length") from error
    # Nested lists do not tell the sizes of the axes below an empty one.
    return array.reshape(array.shape + (0,) * (rank - array.ndim))


def _unpack(name: str, packed: PackedTensor, rank: int) -> Array:
    if len(packed.shape) != rank:
        raise BadRequestError(f"{name} has shape {packed.shape}; it needs {rank} axes")
    try:
        raw = base64.b64decode(packed.base64, validate=True)
    except binascii.Error as error:
        raise BadRequestError(f"{name}.base64 is not base64: {error}") from error
    check_size(name, packed.shape, np.dtype(packed.dtype).itemsize)
    dtype = np.dtype(packed.dtype).newbyteorder("<")
    size = math.prod(packed.shape) * dtype.itemsize
    if len(raw) != size:
        raise BadRequestError(f"{name} has {len(raw)} bytes, but {packed.dtype} {packed.shape} is {size} bytes")
    return np.frombuffer(raw, dtype).reshape(packed.shape).astype(np.float32)

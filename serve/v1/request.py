"""From the typed JSON of ``/v1`` to a model's inputs."""

from __future__ import annotations

import base64
import binascii
import math
from typing import NamedTuple

import numpy as np

from yolo_assigner.serve.detection.collate import pad_ground_truth
from yolo_assigner.serve.detection.grid import anchor_points, count_points, level_sizes, maps_from_flat, strides_of
from yolo_assigner.serve.detection.validate import channels_of, check_inputs, check_outputs
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.loading import LoadedModels
from yolo_assigner.serve.inference.memory_estimate import check_memory
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.v1.schemas import AssignRequest, Batch, LossRequest, PackedTensor
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.tensors import check_size
from yolo_loss.checks import check_batch_size, check_maps, check_pyramid


class Prepared(NamedTuple):
    """A request in the terms of the model that will answer it.

    Attributes:
        model: That model.
        inputs: Checked against its contract.
        image_size: (height, width) in pixels.
        strides: Pixels per cell, one per level.
        level_sizes: Cells (H_i, W_i), one per level.
        outputs: Dense outputs that the caller wants in the reply.
    """

    model: Model
    inputs: dict[str, Array]
    image_size: tuple[int, int]
    strides: list[int]
    level_sizes: list[tuple[int, int]]
    outputs: list[str]


def prepare(registry: LoadedModels, request: LossRequest, max_work_bytes: int) -> Prepared:
    """Choose the model and make its inputs.

    Args:
        registry: All models.
        request: For the loss, or for the assignment.
        max_work_bytes: Most memory that computing it may need.

    Raises:
        ServeError: No model fits, or the request's parts do not fit each other.
    """
    try:
        prepared = _prepared(registry, request)
    except ValueError as error:  # of the grid and the padding, which clients use as well
        raise BadRequestError(str(error)) from error
    check_memory(prepared.model.contract, prepared.inputs, max_work_bytes)
    return prepared


def _prepared(registry: LoadedModels, request: LossRequest) -> Prepared:
    if isinstance(request, AssignRequest) and _is_decoded(request):
        return _decoded(_choose(registry, "assigner", request.model), request)
    return _raw(_choose(registry, "loss", request.model), request)


def _choose(registry: LoadedModels, kind: str, name: str | None) -> Model:
    if name is not None:
        registry.find(name)
    models = {model.contract.name: model for model in registry.some(f"kind {kind}", lambda one: one.kind == kind)}
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise BadRequestError(f"model {name!r} is not of kind {kind}; those are {', '.join(models)}")
    return models[name]


def _is_decoded(request: AssignRequest) -> bool:
    return request.pd_scores is not None or request.pd_bboxes is not None


def _raw(model: Model, request: LossRequest) -> Prepared:
    """Inputs of a loss model: maps as they are, or made from flattened predictions."""
    if isinstance(request, AssignRequest) and request.strides is not None:
        raise BadRequestError("strides goes with pd_scores and pd_bboxes; a loss model has its own")
    parameters = model.contract.hyperparameters
    strides = strides_of(model.contract)
    if request.feats is not None and request.pred_distri is None and request.pred_scores is None:
        named = {f"feats[{level}]": read_tensor(f"feats[{level}]", feat, 4) for level, feat in enumerate(request.feats)}
        check_maps(named, strides, channels_of(model.contract))
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
    inputs = {f"feat_{level}": feat for level, feat in enumerate(maps)}
    sizes = [(rows, columns) for _, _, rows, columns in (level.shape for level in maps)]
    job = Prepared(model, inputs, (height, width), strides, sizes, request.outputs)
    return _with_boxes(job, request.batch, maps[0].shape[0], parameters["num_classes"])


def _decoded(model: Model, request: AssignRequest) -> Prepared:
    """Inputs of an assigner model."""
    if request.pd_scores is None or request.pd_bboxes is None or request.imgsz is None:
        raise BadRequestError("decoded predictions are pd_scores, pd_bboxes and imgsz; give all three")
    if request.feats is not None or request.pred_distri is not None or request.pred_scores is not None:
        raise BadRequestError("give either decoded predictions (pd_scores, pd_bboxes) or raw ones, not both")
    scores = read_tensor("pd_scores", request.pd_scores, 3)
    strides = request.strides or strides_of(model.contract)
    points = count_points(request.imgsz, strides)
    if scores.shape[1] != points:
        raise BadRequestError(
            f"pd_scores has {scores.shape[1]} anchor points, but an image of {request.imgsz[0]} x {request.imgsz[1]} "
            f"has {points} at strides {strides}"
        )
    inputs = {
        "pd_scores": scores,
        "pd_bboxes": read_tensor("pd_bboxes", request.pd_bboxes, 3),
        "anc_points": anchor_points(request.imgsz, strides),
    }
    sizes = level_sizes(request.imgsz, strides)
    job = Prepared(model, inputs, request.imgsz, list(strides), sizes, request.outputs)
    return _with_boxes(job, request.batch, scores.shape[0], scores.shape[2])


def _with_boxes(job: Prepared, batch: Batch, images: int, classes: int) -> Prepared:
    """A request whose inputs are predictions alone, with the boxes added and all of it checked."""
    contract = job.model.contract
    check_batch_size(images)
    truth = pad_ground_truth(batch.batch_idx, batch.cls, batch.bboxes, images, job.image_size, classes)
    check_outputs(contract, job.outputs)
    checked = check_inputs(contract, {**job.inputs, **truth._asdict()})
    return job._replace(inputs=checked, outputs=list(dict.fromkeys(job.outputs)))


def read_tensor(name: str, value: object, rank: int) -> Array:
    """An array from either way to write a tensor.

    Args:
        name: Where it stood in the request, for errors.
        value: Nested lists of numbers, or a packed tensor.
        rank: Its number of axes.

    Returns:
        float32, of that rank.

    Raises:
        BadRequestError: The lists are not regular, or the bytes are not what shape and dtype say.
    """
    if isinstance(value, PackedTensor):
        return _unpack(name, value, rank)
    try:
        array = np.array(value, np.float32)
    except ValueError as error:
        raise BadRequestError(f"{name} is not a regular list, its rows differ in length") from error
    # Where an axis is empty, those below it cannot be told from nested lists.
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

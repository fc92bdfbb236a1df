"""Checks that named arrays are inputs of a model, from its contract alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from yolo_assigner.export.contract import Contract, TensorSpec
from yolo_assigner.serve.detection.grid import strides_of
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.wire.dtypes import BINARY_ONLY, Array, narrows, widens, wire_name
from yolo_loss.checks import (
    check_anchors,
    check_batch_size,
    check_class_weight_values,
    check_maps,
    check_points,
    check_pyramid,
    check_slots,
)

AXES = {
    "B": "images",
    "A": "anchor points",
    "M": "ground-truth slots",
    "C": "classes",
    "I": "regions to ignore",
    "S": "sets of anchor points",
}


def check_inputs(contract: Contract, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Check inputs against a contract.

    Args:
        contract: Contract of the model.
        arrays: Inputs by name, in the types in which they were sent.

    Returns:
        The same values in the order, types and axes of the contract: narrower floats are widened, floats of up to 32
        bits are rounded to the half precision of a model that was exported in it, and anchor points (A, 2) become
        (1, A, 2) where the model also takes those of each image, and the other way round where it does not.

    Raises:
        BadRequestError: A name is missing or unknown, a type or rank is wrong, a number is too large for the model's
            precision, a fixed axis has another size, axes of one letter disagree, there is no image, anchor point or
            cell of a level, the maps are not the levels of one image, images do not consist of whole cells, anchor
            points are those of another number of images or not finite, a class does not exist, or a class weight is
            negative or not finite.
    """
    _check_names(contract, arrays)
    axes: dict[str, tuple[int, str]] = {}
    inputs = {spec.name: _shared(spec, _converted(spec, arrays[spec.name])) for spec in contract.inputs}
    maps = {spec.name: inputs[spec.name] for spec in contract.maps}
    strides = strides_of(contract) if maps else []
    with _bad_requests():
        if maps:
            check_maps(maps, strides, channels_of(contract))
    for spec in contract.inputs:
        _bind_axes(spec, inputs[spec.name], axes)
    classes = axes["C"][0] if "C" in axes else contract.hyperparameters["num_classes"]
    with _bad_requests():
        check_batch_size(len(inputs["gt_labels"]))
        check_pyramid(maps, strides)
        check_slots(inputs["gt_labels"], inputs["mask_gt"], classes, negative=False)
        if "class_weights" in inputs:
            check_class_weight_values(inputs["class_weights"])
    if "images" in inputs:
        _check_images(contract, inputs["images"])
    if "anc_points" in inputs:
        _check_points(inputs["anc_points"], axes)
    return inputs


def check_outputs(contract: Contract, names: list[str]) -> None:
    """Check that a model has outputs of these names.

    Raises:
        BadRequestError: It lacks one.
    """
    known = [spec.name for spec in contract.outputs]
    for name in names:
        if name not in known:
            raise BadRequestError(f"model {contract.name!r} has no output {name!r}; it has {', '.join(known)}")


def channels_of(contract: Contract) -> int:
    """Number of channels, 4R + C, of the maps that a model takes."""
    return int(contract.maps[0].axes[1])


@contextmanager
def _bad_requests() -> Iterator[None]:
    """Turn the ValueErrors of checks that training and the client share into errors of a request."""
    try:
        yield
    except ValueError as error:
        raise BadRequestError(str(error)) from error


def _check_names(contract: Contract, arrays: Mapping[str, Array]) -> None:
    known = [spec.name for spec in contract.inputs]
    unknown = [name for name in arrays if name not in known]
    missing = [name for name in known if name not in arrays]
    if unknown:
        raise BadRequestError(f"model {contract.name!r} has no input {unknown[0]!r}; it takes {', '.join(known)}")
    if missing:
        raise BadRequestError(f"model {contract.name!r} needs input {', '.join(missing)}; it takes {', '.join(known)}")


def _converted(spec: TensorSpec, array: Array) -> Array:
    given, expected = wire_name(array.dtype), wire_name(spec.dtype)
    if given == expected:
        return array
    if widens(given, expected):
        return array.astype(spec.dtype)
    if narrows(given, expected):
        return _rounded(spec, array)
    narrower = " (FP16 and BF16 are widened when sent as binary)" if expected == "FP32" else ""
    accepted = f"{expected} or FP32" if expected in BINARY_ONLY else expected
    raise BadRequestError(f"input {spec.name!r} is {given}; convert it to {accepted} before sending{narrower}")


def _rounded(spec: TensorSpec, array: Array) -> Array:
    try:
        with np.errstate(over="raise"):
            # By way of float32: bfloat16's own conversion does not report overflow.
            return array.astype(np.float32, copy=False).astype(spec.dtype)
    except FloatingPointError as error:
        raise BadRequestError(
            f"input {spec.name!r} has numbers beyond the largest {wire_name(spec.dtype)}, the model's precision; "
            "scale them down, or serve a model exported with --precision bf16 or fp32"
        ) from error


def _bind_axes(spec: TensorSpec, array: Array, axes: dict[str, tuple[int, str]]) -> None:
    """Compare a shape with its axes. ``axes`` maps each letter to its size and the input that first set it."""
    shape = list(array.shape)
    layout = f"[{', '.join(map(str, spec.axes))}]"
    if len(shape) != len(spec.axes):
        raise BadRequestError(f"input {spec.name!r} has shape {shape}; it needs {len(spec.axes)} axes, {layout}")
    for place, (axis, size) in enumerate(zip(spec.axes, shape, strict=True)):
        if isinstance(axis, int):
            if size != axis:
                raise BadRequestError(
                    f"input {spec.name!r} has shape {shape}; axis {place} must be {axis}, as in {layout}"
                )
            continue
        bound, owner = axes.setdefault(axis, (size, spec.name))
        if bound != size:
            meaning = f" ({AXES[axis]})" if axis in AXES else ""
            raise BadRequestError(
                f"axis {axis}{meaning} is {size} in input {spec.name!r} {shape}, but {bound} in input {owner!r}; "
                "all inputs of a request must agree"
            )


def _check_images(contract: Contract, images: Array) -> None:
    """Check that both sides are whole cells of every level."""
    cell = max(strides_of(contract))
    height, width = images.shape[2:]
    if not height or not width or height % cell or width % cell:
        raise BadRequestError(
            f"input 'images' has pictures of {height} x {width}; resize or pad both sides to multiples of {cell}"
        )


def _shared(spec: TensorSpec, array: Array) -> Array:
    """Give anchor points of all images the axis of sets, or take it from them, as the model has it or not."""
    if spec.name != "anc_points":
        return array
    if array.ndim == len(spec.axes) - 1:
        return array[np.newaxis]
    return array[0] if array.ndim == len(spec.axes) + 1 and len(array) == 1 else array


def _check_points(points: Array, axes: Mapping[str, tuple[int, str]]) -> None:
    images, sets = axes["B"][0], axes["S"][0] if "S" in axes else 1
    if sets not in (1, images):
        raise BadRequestError(
            f"input 'anc_points' has shape {list(points.shape)}, points of {sets} images, but there are {images}; send "
            "those of each, or one set for all as [A, 2]"
        )
    with _bad_requests():
        check_anchors(points.shape[-2])
        check_points(points[0] if "S" in axes and sets == 1 else points)

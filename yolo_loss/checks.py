"""Checks of batches, with the same errors in training, in the client and in the service.

This module imports numpy only. Shapes and dtypes may be those of arrays or of tensors. Values are arrays; ``None``
stands for the values of a tensor that are not free to read, on a GPU or in a traced graph, and passes.

Every error is a ``ValueError`` whose text names the value and ends in the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

COLUMNS = ("batch_idx", "cls", "bboxes")
BOX_FORMAT = "centre x, centre y, width, height as fractions of the image"
MAP_LAYOUT = "(B, 4R + C, H, W)"
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
NUMBERS = FLOATS | {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
# Boxes may reach out of the image, but coordinates beyond this are pixels.
MAX_FRACTION = 2.0
MAX_INDEX = 2**31
MAX_COORDINATE = 2**30  # pixels
REGION_COLUMNS = ("ignore_idx", "ignore_bboxes")


class Shaped(Protocol):
    """An array of numpy or a tensor of torch."""

    @property
    def shape(self) -> Any:
        """Sizes of the axes."""

    @property
    def dtype(self) -> Any:
        """Type of the elements."""


def describe(value: object) -> str:
    """Describe a value in an error."""
    kind = type(value).__name__
    if hasattr(value, "shape"):
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple) and value:
        return f"a {kind} of {len(value)} {type(value[0]).__name__}"
    return kind


def dtype_name(array: Shaped) -> str:
    """The dtype's name, ``float32`` for numpy's and torch's alike."""
    return str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")


def as_array(name: str, value: Any, list_type: type[np.floating[Any]] | None = None, *, flags: bool = False) -> Array:
    """Convert to an array on the host.

    Args:
        name: The value's name in an error.
        value: An array, a tensor (detached; torch is not imported), or lists of numbers.
        list_type: Dtype of lists; None: numpy's choice.
        flags: Whether booleans are accepted.

    Returns:
        A view where possible. bfloat16, which numpy does not have, becomes float32.

    Raises:
        ValueError: Lists are irregular, or elements are not numbers.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if dtype_name(value) == "bfloat16" else value).numpy()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {describe(value)}, which is not regular; give one array of numbers") from error
    if flags and array.dtype == np.bool_:
        return array
    check_numbers(name, array)
    if dtype_name(array) == "bfloat16":
        return array.astype(np.float32)
    with np.errstate(over="ignore"):  # overflow becomes infinite, as in torch
        return array.astype(list_type, copy=False) if list_type and isinstance(value, list | tuple) else array


def check_numbers(name: str, array: Shaped) -> None:
    """Refuse booleans, text, complex numbers and objects.

    Raises:
        ValueError: The dtype is not in ``NUMBERS``.
    """
    if dtype_name(array) not in NUMBERS:
        raise ValueError(f"{name} has dtype {dtype_name(array)}; give real numbers, as float32 or int64")


def check_floating(name: str, array: Shaped) -> None:
    """Refuse integers where floating-point numbers are needed.

    Raises:
        ValueError: The dtype is not a floating-point one.
    """
    if not dtype_name(array).startswith(("float", "bfloat")):
        raise ValueError(f"{name} has dtype {dtype_name(array)}, expected a floating-point one; convert it to float32")


def check_shape(name: str, array: Shaped, shape: Sequence[int | None], layout: str) -> None:
    """Compare a shape with the expected one, in which None is any size.

    Raises:
        ValueError: They differ.
    """
    actual = tuple(array.shape)
    is_supported = len(actual) == len(shape) and all(
        want is None or want == got for want, got in zip(shape, actual, strict=True)
    )
    if not is_supported:
        expected = ", ".join("*" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} has shape {actual}, expected ({expected}): {layout}")


def batch_columns(batch: Any) -> dict[str, Any]:
    """Extract the three ragged columns of a batch.

    Raises:
        ValueError: The batch is not a dict, or lacks a column.
    """
    form = f"batch_idx (T,), cls (T,) and bboxes (T, 4), {BOX_FORMAT}"
    if not hasattr(batch, "keys"):
        raise ValueError(f"batch is {describe(batch)}; give a dict with {form}")
    missing = [name for name in COLUMNS if name not in batch]
    if missing:
        raise ValueError(f"batch lacks {', '.join(missing)}; give {form}")
    return {name: batch[name] for name in COLUMNS}


def check_columns(batch_idx: Shaped, cls: Shaped, bboxes: Shaped) -> None:
    """Check shapes and dtypes of a ragged batch: (T,) or (T, 1) twice, and (T, 4).

    Raises:
        ValueError: Shapes do not belong together, or elements are not numbers.
    """
    for name, column in (("batch_idx", batch_idx), ("cls", cls)):
        shape = tuple(column.shape)
        if len(shape) != 1 and (len(shape) != 2 or shape[1] != 1):  # noqa: PLR2004
            raise ValueError(f"{name} has shape {shape}; give (T,), one entry for every box")
    count = batch_idx.shape[0]
    if cls.shape[0] != count:
        raise ValueError(f"cls has {cls.shape[0]} entries, batch_idx has {count}; give one of each for every box")
    shape = tuple(bboxes.shape)
    if shape != (count, 4) and (count or 0 not in shape):
        raise ValueError(f"bboxes has shape {shape}, batch_idx has {count} entries; give ({count}, 4): {BOX_FORMAT}")
    if count:
        check_numbers("batch_idx", batch_idx)
        check_numbers("cls", cls)
        check_floating("bboxes", bboxes)


def region_columns(batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Extract the two ragged columns of regions to ignore; None where a batch has neither.

    Raises:
        ValueError: It has one without the other.
    """
    found = {name: batch[name] for name in REGION_COLUMNS if name in batch and batch[name] is not None}
    if len(found) == 1:
        (name,) = found
        raise ValueError(f"batch has {name} alone; give ignore_idx (K,) and ignore_bboxes (K, 4), or neither")
    return found or None


def check_regions(ignore_idx: Shaped, ignore_bboxes: Shaped) -> None:
    """Check shapes and dtypes of ragged regions to ignore: (K,) or (K, 1), and (K, 4).

    Raises:
        ValueError: Shapes do not belong together, or elements are not numbers.
    """
    shape = tuple(ignore_idx.shape)
    if len(shape) != 1 and (len(shape) != 2 or shape[1] != 1):  # noqa: PLR2004
        raise ValueError(f"ignore_idx has shape {shape}; give (K,), the image of every region")
    count, shape = shape[0], tuple(ignore_bboxes.shape)
    if shape != (count, 4) and (count or 0 not in shape):
        raise ValueError(
            f"ignore_bboxes has shape {shape}, ignore_idx has {count} entries; give ({count}, 4): {BOX_FORMAT}"
        )
    if count:
        check_numbers("ignore_idx", ignore_idx)
        check_floating("ignore_bboxes", ignore_bboxes)


def check_region_values(ignore_idx: Array | None, ignore_bboxes: Array | None, images: int) -> None:
    """Check the values of ragged regions to ignore.

    Args:
        ignore_idx: (K,) or (K, 1).
        ignore_bboxes: (K, 4).
        images: B.

    Raises:
        ValueError: An image does not exist, or a region is not finite or in pixels.
    """
    if ignore_idx is not None:
        _check_indices("ignore_idx", ignore_idx, images, "images")
    if ignore_bboxes is not None:
        _check_boxes("ignore_bboxes", ignore_bboxes)


def check_class_weights(weights: Shaped, images: int, classes: int) -> None:
    """Check shape and dtype of a batch's class weights, (C,) or (B, C).

    Raises:
        ValueError: The shape is another one, or elements are not numbers.
    """
    shape = tuple(weights.shape)
    if shape not in ((classes,), (images, classes)):
        raise ValueError(
            f"class_weights has shape {shape}; give ({classes},), one number for each class, or ({images}, {classes}), "
            "one for each image and class"
        )
    check_numbers("class_weights", weights)


def check_class_weight_values(weights: Array) -> None:
    """Check the values of class weights of any shape.

    Raises:
        ValueError: One is negative or not finite.
    """
    values = _comparable(weights)
    right = np.isfinite(values) & (values >= 0)
    if not right.all():
        place = np.argwhere(~right)[0].tolist()
        raise ValueError(f"class_weights{place} is {weights[tuple(place)]}; give finite numbers, 0 or more")


def check_values(
    batch_idx: Array | None, cls: Array | None, bboxes: Array | None, images: int, classes: int | None
) -> None:
    """Check the values of a ragged batch.

    Args:
        batch_idx: (T,) or (T, 1).
        cls: (T,) or (T, 1).
        bboxes: (T, 4).
        images: B.
        classes: C; None if unknown.

    Raises:
        ValueError: An image or a class does not exist, or a box is not finite or in pixels.
    """
    if batch_idx is not None:
        _check_indices("batch_idx", batch_idx, images, "images")
    if cls is not None:
        _check_indices("cls", cls, classes, "classes")
    if bboxes is not None:
        _check_boxes("bboxes", bboxes)


def check_slots(labels: Array, mask: Array, classes: int, *, negative: bool) -> None:
    """Check the classes of padded ground truth.

    Args:
        labels: (B, M, 1). A label that is too large is refused on padding, too, because it is used as an index there.
        mask: (B, M, 1), non-zero on valid slots.
        classes: C.
        negative: Whether labels below 0 are accepted in valid slots, where they count as 0.

    Raises:
        ValueError: A class does not exist.
    """
    values = _comparable(labels)
    wrong = values >= classes
    if not negative:
        wrong |= (mask != 0) & (values < 0)
    if values.dtype == np.float64:
        wrong |= (mask != 0) & ~(np.isfinite(values) & (values == np.trunc(values)))
    if wrong.any():
        image, slot, _ = np.argwhere(wrong)[0]
        raise _index_error(f"gt_labels[{image}, {slot}]", labels[image, slot, 0], classes, "classes")


def check_batch_size(images: int) -> None:
    """Refuse a batch without images, which exported models do not accept.

    Raises:
        ValueError: B is 0.
    """
    if images == 0:
        raise ValueError("the batch has 0 images; send at least one image")


def check_padded(inputs: Mapping[str, Shaped], classes: int | None = None) -> None:
    """Check shapes and dtypes of an assigner's inputs.

    Args:
        inputs: The six inputs by name.
        classes: C; None: any.

    Raises:
        ValueError: Shapes do not belong together, or there is no anchor point.
    """
    check_shape("pd_scores", inputs["pd_scores"], (None, None, classes), "(B, A, C), C as in num_classes")
    images, anchors, _ = inputs["pd_scores"].shape
    check_anchors(anchors)
    check_shape("pd_bboxes", inputs["pd_bboxes"], (images, anchors, 4), "(B, A, 4), B and A as in pd_scores")
    _check_points_shape(inputs["anc_points"], images, anchors)
    check_shape("gt_bboxes", inputs["gt_bboxes"], (images, None, 4), "(B, M, 4), B as in pd_scores")
    slots = inputs["gt_bboxes"].shape[1]
    for name in ("gt_labels", "mask_gt"):
        check_shape(name, inputs[name], (images, slots, 1), "(B, M, 1), B and M as in gt_bboxes")
    for name in ("pd_scores", "pd_bboxes", "gt_bboxes"):
        check_floating(name, inputs[name])
    check_numbers("gt_labels", inputs["gt_labels"])


def _check_points_shape(points: Shaped, images: int, anchors: int) -> None:
    if not points.shape[:-2]:
        check_shape("anc_points", points, (anchors, 2), "(A, 2), or (B, A, 2) for each image's own, as in pd_scores")
        return
    sets = 1 if points.shape[0] == 1 else images
    check_shape("anc_points", points, (sets, anchors, 2), "(B, A, 2), B (or 1, for all images) and A as in pd_scores")


def check_anchors(anchors: int) -> None:
    """Refuse predictions without anchor points.

    Raises:
        ValueError: A is 0.
    """
    if anchors == 0:
        raise ValueError("pd_scores has 0 anchor points, and nothing can be assigned; give at least one anchor point")


def check_points(points: Array) -> None:
    """Check anchor points (..., 2), from which indices are computed.

    Raises:
        ValueError: A coordinate is not finite, or beyond ``MAX_COORDINATE``.
    """
    # Neither holds for NaN.
    if not (float(points.max(initial=0)) <= MAX_COORDINATE and float(points.min(initial=0)) >= -MAX_COORDINATE):
        place = np.argwhere(~(np.abs(_comparable(points)) <= MAX_COORDINATE).all(axis=-1))[0]
        raise ValueError(
            f"anc_points[{', '.join(map(str, place))}] is {points[tuple(place)].tolist()}; give finite pixels, as the "
            f"grid of the levels has them, not beyond {MAX_COORDINATE}"
        )


def map_list(feats: Any, name: str = "feats") -> list[Any]:
    """Convert feature maps to a list.

    Raises:
        ValueError: They are not a collection of maps, but a single tensor for example.
    """
    single = isinstance(feats, str | bytes | Mapping) or hasattr(feats, "shape")
    if single or not isinstance(feats, Iterable):
        layout = f"maps {MAP_LAYOUT}" if name == "feats" else "maps"
        raise ValueError(f"{name} is {describe(feats)}; give a list of {layout}, one per stride")
    return list(feats)


def check_maps(
    maps: Mapping[str, Shaped], strides: Sequence[float], channels: int | None = None, layout: str = MAP_LAYOUT
) -> None:
    """Check number, shapes and dtypes of feature maps, not whether they are of one image.

    Args:
        maps: Maps by their name in an error.
        strides: Pixels per cell of each level.
        channels: 4R + C; None: any.
        layout: Axes of a map.

    Raises:
        ValueError: There are more or fewer maps than strides, or a map does not match the first.
    """
    if len(maps) != len(strides):
        shapes = ", ".join(str(tuple(level.shape)) for level in maps.values()) or "nothing"
        raise ValueError(
            f"feats has {len(maps)} maps, but there are {len(strides)} strides; give one map {layout} for each of "
            f"strides {_listed(strides)}, not {shapes}"
        )
    first = next(iter(maps.values())).shape
    images = first[0] if first else None
    for name, level in maps.items():
        check_shape(name, level, (images, channels, None, None), f"{layout}, one B")
        check_floating(name, level)


def check_pyramid(maps: Mapping[str, Shaped], strides: Sequence[float]) -> None:
    """Check that feature maps are the levels of one image, in the order of their strides.

    Networks round the sizes of odd images up or down, level by level. So the sizes in pixels of two levels may differ
    by less than one cell of the coarser level.

    Args:
        maps: (B, channels, H_i, W_i) each, by their name in an error.
        strides: Pixels per cell of each level.

    Raises:
        ValueError: A level has no cells, or two levels are of different images.
    """
    for name, level in maps.items():
        if 0 in level.shape[2:]:
            raise ValueError(f"{name} has shape {tuple(level.shape)}, no cells; give larger images or fewer levels")
    levels = [
        (name, tuple(level.shape[2:]), stride) for (name, level), stride in zip(maps.items(), strides, strict=True)
    ]
    for (name, cells, stride), (other, other_cells, other_stride) in combinations(levels, 2):
        coarser = max(stride, other_stride)
        if any(abs(a * stride - b * other_stride) >= coarser for a, b in zip(cells, other_cells, strict=True)):
            raise ValueError(
                f"{name} is {_pixels(cells, stride)}, but {other} is {_pixels(other_cells, other_stride)}; give the "
                f"maps in the order of strides {_listed(strides)}, all of the same images"
            )


def _check_indices(name: str, values: Array, end: int | None, of: str) -> None:
    """Refuse values that are not whole numbers in [0, end)."""
    if not values.size:
        return
    values = values.reshape(-1)
    numbers, above = _comparable(values), MAX_INDEX if end is None else end
    whole = numbers.dtype != np.float64 or bool((numbers == np.trunc(numbers)).all())
    if whole and numbers.min() >= 0 and numbers.max() < above:
        return
    place = int(np.argmin((numbers >= 0) & (numbers < above) & (numbers == np.trunc(numbers))))
    raise _index_error(f"{name}[{place}]", values[place], end, of)


def _index_error(where: str, number: Any, end: int | None, of: str) -> ValueError:
    shown = str(number).removesuffix(".0")
    if end is None:
        return ValueError(f"{where} is {shown}; give whole numbers, 0 or more")
    remedy = f"whole numbers from 0 to {end - 1}" if end else "no boxes"
    if of == "classes" and end <= float(number) < MAX_INDEX:
        remedy += ", or use a model of more classes"
    return ValueError(f"{where} is {shown}, and the number of {of} is {end}; give {remedy}")


def _check_boxes(name: str, boxes: Array) -> None:
    if not boxes.size or np.abs(boxes).max() <= MAX_FRACTION:  # false for NaN
        return
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        place, remedy = int(np.argmin(finite)), "give four finite numbers, or leave the box out"
    else:
        place = int(np.argmax((np.abs(boxes) > MAX_FRACTION).any(axis=1)))
        remedy = f"these are pixels, give {BOX_FORMAT}: divide by the image's width and height"
    shown = ", ".join(str(number) for number in boxes[place])
    raise ValueError(f"{name}[{place}] is [{shown}]; {remedy}")


def _comparable(values: Array) -> Array:
    """Convert floats to float64, because a class count or a bound may exceed float16."""
    return values.astype(np.float64) if dtype_name(values) in FLOATS else values


def _listed(strides: Iterable[float]) -> str:
    return ", ".join(f"{stride:g}" for stride in strides)


def _pixels(cells: tuple[int, ...], stride: float) -> str:
    height, width = cells
    return f"{height} x {width} cells of stride {stride:g}, an image of {height * stride:g} x {width * stride:g} pixels"

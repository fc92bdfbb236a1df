"""Sizes that an engine is built for: from the arguments of ``--profile`` to the dynamic axes of a model's inputs.

An engine accepts sizes from the smallest to the largest and is tuned for the usual one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from yolo_assigner.export.contract import Contract
from yolo_assigner.export.to_tensorrt.contract import Profile, Sizes

AXIS = re.compile(r"imgsz|[BMICAS]|[HW]\d*")
# Axes that may be 0: a batch without ground truth or without regions to ignore.
MAYBE_EMPTY = ("M", "I")
# Axes that depend on the image: its sides in pixels, the sides of its maps, its anchors.
OF_IMAGE = re.compile(r"[HW]\d*|A")
# The largest sizes determine an engine's scratch memory: for the loss with 3 classes TensorRT-RTX 1.7.1 logs 4.2 GB
# with these, 0.2 GB with B = 16 and M = 32.
USUAL: Mapping[str, Sizes] = {"B": (1, 16, 64), "M": (0, 32, 300), "I": (0, 4, 64)}
USUAL_SIDE: Sizes = (640, 640, 640)

T = TypeVar("T")


@dataclass(frozen=True)
class ProfileRequest:
    """Requested sizes of one profile; the other axes get defaults.

    Attributes:
        sizes: Sizes by axis letter.
        image: Sizes of the image's height and width in pixels, which determine other axes; None if not given.
    """

    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    image: tuple[Sizes, Sizes] | None = None


def default_profile() -> ProfileRequest:
    """Return the request without sizes."""
    return ProfileRequest()


def parse_profile(words: Sequence[str]) -> ProfileRequest:
    """Parse the arguments of one ``--profile``.

    Args:
        words: Each is ``AXIS=SIZE`` or ``AXIS=SMALLEST,USUAL,LARGEST``. An axis is a letter of the model's contract, or
            imgsz in pixels: ``640`` for a square, ``384x640`` for height and width.

    Raises:
        ValueError: A word is malformed, an axis is repeated, or its sizes are too small or descend.
    """
    sizes: dict[str, Sizes] = {}
    image = None
    for word in words:
        axis, _, text = word.partition("=")
        if not AXIS.fullmatch(axis):
            raise ValueError(f"profile word {word!r} is not AXIS=SIZE with an axis as B, M or imgsz; write B=1,16,64")
        if axis in sizes or (axis == "imgsz" and image):
            raise ValueError(f"profile word {word!r} names {axis} a second time; give it once")
        if axis == "imgsz":
            heights, widths = zip(*_three(word, text, _image), strict=True)
            image = _ascending(word, heights), _ascending(word, widths)
        else:
            sizes[axis] = _ascending(word, _three(word, text, int), least=0 if axis in MAYBE_EMPTY else 1)
    return ProfileRequest(sizes, image)


def _three(word: str, text: str, read: Callable[[str], T]) -> tuple[T, ...]:
    try:
        sizes = tuple(read(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) not in (1, 3):
        raise ValueError(f"profile word {word!r} needs one whole number, or three: smallest,usual,largest")
    return sizes * 3 if len(sizes) == 1 else sizes


def _image(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    return int(height), int(width if cross else height)


def _ascending(word: str, sizes: tuple[int, ...], least: int = 1) -> Sizes:
    low, usual, high = sizes
    if low < least:
        raise ValueError(f"profile word {word!r} has the size {low}; the smallest possible is {least}")
    if not low <= usual <= high:
        raise ValueError(f"profile word {word!r} does not ascend; write the smallest, the usual and the largest size")
    return low, usual, high


def resolve_profile(request: ProfileRequest, contract: Contract) -> Profile:
    """Compute the sizes of every dynamic axis of a model's inputs.

    Args:
        request: Requested sizes.
        contract: Contract of the model.

    Raises:
        ValueError: The model does not have a requested axis, a side of the image is not a multiple of a stride, or only
            some of the axes that depend on the image are given.
    """
    letters = list(dict.fromkeys(axis for spec in contract.inputs for axis in spec.axes if isinstance(axis, str)))
    of_image = [axis for axis in letters if OF_IMAGE.fullmatch(axis)]
    _check_names(request, contract, letters, of_image)
    classes = contract.hyperparameters["num_classes"]
    known = {**USUAL, "C": (classes, classes, classes), **request.sizes}
    # One set of anchor points for all images is usual; one for each must be possible.
    known.setdefault("S", (1, 1, known["B"][2]))
    image = request.image or (request.sizes.get("H", USUAL_SIDE), request.sizes.get("W", USUAL_SIDE))
    # Map sides or A may be given instead of the image; sides of the image must be multiples of the strides.
    if of_image and ("H" in of_image or of_image[0] not in request.sizes):
        known |= _follow_image(*image, contract.hyperparameters["strides"])
    if unknown := [axis for axis in letters if axis not in known]:
        raise ValueError(f"{contract.name} has axes without a usual size; name them too: {', '.join(unknown)}")
    return {axis: known[axis] for axis in sorted(letters, key=lambda axis: axis in of_image)}


def _check_names(request: ProfileRequest, contract: Contract, letters: list[str], of_image: list[str]) -> None:
    choices = letters + ["imgsz"] * bool(of_image)
    for name in [*request.sizes, *(["imgsz"] if request.image else [])]:
        if name not in choices:
            raise ValueError(f"{contract.name} has no axis {name} to choose a size of; it has {', '.join(choices)}")
    named = [axis for axis in of_image if axis in request.sizes]
    if named and (request.image or named != of_image):
        raise ValueError(f"{named[0]} follows from imgsz; name imgsz, or without it all of {', '.join(of_image)}")


def _follow_image(heights: Sizes, widths: Sizes, strides: Sequence[float]) -> Profile:
    for side in (*heights, *widths):
        for stride in sorted(strides, reverse=True):
            if side % stride:
                near = [f"{(side // stride + more) * stride:g}" for more in (0, 1) if side // stride + more]
                raise ValueError(f"imgsz {side} is no multiple of the stride {stride:g}; take {' or '.join(near)}")
    maps = [(_cells(heights, stride), _cells(widths, stride)) for stride in strides]
    low, usual, high = (sum(rows[i] * columns[i] for rows, columns in maps) for i in range(3))
    profile: Profile = {"H": heights, "W": widths, "A": (low, usual, high)}
    for level, (rows, columns) in enumerate(maps):
        profile |= {f"H{level}": rows, f"W{level}": columns}
    return profile


def _cells(sides: Sizes, stride: float) -> Sizes:
    low, usual, high = (int(side // stride) for side in sides)
    return low, usual, high

"""Chooses the optimisation profile of a TensorRT engine for the sizes of a request."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.export.to_tensorrt.contract import EngineContract, Profile
from yolo_assigner.serve.detection.validate import AXES
from yolo_assigner.serve.inference.runners.base import UnfitRequestError
from yolo_assigner.serve.wire.dtypes import Array


def dynamic_sizes(specs: Iterable[TensorSpec], arrays: Mapping[str, Array]) -> dict[str, int]:
    """Sizes of the dynamic axes by their letters.

    Args:
        specs: Inputs of the model.
        arrays: Inputs by name, which agree about each letter.
    """
    return {
        axis: size
        for spec in specs
        for axis, size in zip(spec.axes, arrays[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }


def choose_profile(engine: EngineContract, sizes: Mapping[str, int]) -> int:
    """Index of the profile that was optimised for the sizes nearest to these.

    Args:
        engine: Contract of the engine.
        sizes: Sizes of the request's axes by their letters.

    Raises:
        UnfitRequestError: Every profile excludes some size.
    """
    # Where no profile fits, the error names the one that excludes the fewest axes.
    order = [(len(_outside(profile, sizes)), _distance(profile, sizes)) for profile in engine.profiles]
    best = order.index(min(order))
    outside = _outside(engine.profiles[best], sizes)
    if outside:
        raise UnfitRequestError(_refusal(engine, best, {axis: sizes[axis] for axis in outside}))
    return best


def _outside(profile: Profile, sizes: Mapping[str, int]) -> list[str]:
    return [axis for axis, (low, _, high) in profile.items() if axis in sizes and not low <= sizes[axis] <= high]


def _distance(profile: Profile, sizes: Mapping[str, int]) -> float:
    """Sum over all axes of the log ratio to the profile's usual size; sizes may be 0."""
    usual = {axis: limits[1] for axis, limits in profile.items() if axis in sizes}
    return sum(abs(math.log((sizes[axis] + 1) / (size + 1))) for axis, size in usual.items())


def _refusal(engine: EngineContract, index: int, sizes: Mapping[str, int]) -> str:
    profile = engine.profiles[index]
    parts = []
    for axis, size in sizes.items():
        low, _, high = profile[axis]
        meaning = f" ({AXES[axis]})" if axis in AXES else ""
        parts.append(f"axis {axis}{meaning} is {size}, but engine {engine.file} takes {low} to {high}")
    wider = {axis: _widened(limits, sizes.get(axis)) for axis, limits in profile.items()}
    profiles = tuple(wider if place == index else profile for place, profile in enumerate(engine.profiles))
    command = replace(engine, profiles=profiles).rebuild_command
    return f"{'; '.join(parts)}; send other sizes, or have it rebuilt for these: `{command}`"


def _widened(limits: tuple[int, int, int], size: int | None) -> tuple[int, int, int]:
    low, usual, high = limits
    return limits if size is None else (min(low, size), usual, max(high, size))

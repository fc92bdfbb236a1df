"""The warm-up: proves that a runner runs its model, and makes the first request as fast as later ones."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from yolo_assigner.export.contract import Contract, TensorSpec
from yolo_assigner.serve.detection.grid import strides_of
from yolo_assigner.serve.inference.runners.base import Runner
from yolo_assigner.serve.wire.dtypes import Array


def warm_up(runner: Runner, contract: Contract) -> None:
    """Load a runner and call it twice: with the default outputs, then with all.

    Args:
        runner: Closed when it fails.
        contract: Contract of its model.

    Raises:
        Exception: That of the runner.
    """
    try:
        runner.load()
        inputs = tiny_inputs(contract, runner.sizes)
        runner.infer(inputs, contract.default_outputs)
        runner.infer(inputs, [spec.name for spec in contract.outputs])
    except Exception:
        with suppress(Exception):  # the first failure is the reason
            runner.close()
        raise


def tiny_inputs(contract: Contract, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Make zeros of the smallest legal shapes: one image as wide as the largest stride, one empty slot.

    Args:
        contract: Contract of the model.
        sizes: Other sizes for some axes, by their letters.
    """
    smallest = {**axis_sizes(contract, 1, 1), **(sizes or {})}
    return {spec.name: np.zeros(shape_of(spec, smallest), spec.dtype) for spec in contract.inputs}


def axis_sizes(contract: Contract, rows: int, columns: int) -> dict[str, int]:
    """Sizes of all axes by their letters, for one image with one slot and one class.

    Args:
        contract: Contract of the model; its strides give the levels.
        rows: Cells down the coarsest level.
        columns: Cells across it.
    """
    strides = strides_of(contract)
    height, width = max(strides) * rows, max(strides) * columns
    anchors = sum((height // stride) * (width // stride) for stride in strides)
    sizes = {"B": 1, "M": 1, "C": 1, "H": height, "W": width, "A": anchors}
    for level, stride in enumerate(strides):
        sizes |= {f"H{level}": height // stride, f"W{level}": width // stride}
    return sizes


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> list[int]:
    """Shape of a tensor for sizes of its axes by their letters; 1 for axes without a size."""
    return [axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in spec.axes]

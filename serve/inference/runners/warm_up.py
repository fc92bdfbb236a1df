"""Whether a runner really runs a model: it is loaded and run once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from yolo_assigner.export.contract import Contract, TensorSpec
from yolo_assigner.serve.detection.grid import strides_of
from yolo_assigner.serve.inference.runners.base import Runner
from yolo_assigner.serve.wire.dtypes import Array


def warm_up(runner: Runner, contract: Contract) -> None:
    """Load and run with the outputs that are sent by default, then with all, so that no caller waits for a first time.

    Args:
        runner: Closed when it fails.
        contract: Of its model.

    Raises:
        Exception: Whatever the runner raises.
    """
    try:
        runner.load()
        inputs = tiny_inputs(contract, runner.sizes)
        runner.infer(inputs, contract.default_outputs)
        runner.infer(inputs, [spec.name for spec in contract.outputs])
    except Exception:
        with suppress(Exception):  # what failed first is what counts
            runner.close()
        raise


def tiny_inputs(contract: Contract, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Zeros of the smallest shapes that make sense: one image as wide as the largest stride, one empty slot.

    Args:
        contract: Whose inputs.
        sizes: Axes, by their letters, that are to have another size.
    """
    smallest = {**axis_sizes(contract, 1, 1), **(sizes or {})}
    return {spec.name: np.zeros(shape_of(spec, smallest), spec.dtype) for spec in contract.inputs}


def axis_sizes(contract: Contract, rows: int, columns: int) -> dict[str, int]:
    """Sizes of all axes, by their letters, of one image with one slot and one class.

    Args:
        contract: Whose strides count.
        rows: Cells of the coarsest level.
        columns: The same across.
    """
    strides = strides_of(contract)
    height, width = max(strides) * rows, max(strides) * columns
    anchors = sum((height // stride) * (width // stride) for stride in strides)
    sizes = {"B": 1, "M": 1, "C": 1, "H": height, "W": width, "A": anchors}
    for level, stride in enumerate(strides):
        sizes |= {f"H{level}": height // stride, f"W{level}": width // stride}
    return sizes


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> list[int]:
    """Shape of a tensor whose axes have these sizes, by their letters."""
    return [axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in spec.axes]

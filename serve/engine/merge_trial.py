"""Whether a runner computes requests together as it computes them alone, to the bit: tried with real calls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from yolo_assigner.export.contract import Contract, TensorSpec
from yolo_assigner.serve.engine.merge import SHARED, Request, computed_outputs, merge, split
from yolo_assigner.serve.engine.runners.base import Runner
from yolo_assigner.serve.engine.runners.trial import axis_sizes, shape_of
from yolo_assigner.serve.tensors.datatypes import Array
from yolo_assigner.serve.tensors.grid import strides_of

# Cells of the coarsest level: odd, so that images begin anywhere in memory.
ROWS, COLUMNS = 3, 5
CLASSES = 3
# Images and slots of each request: slots of one power of two, some requests of several images.
REQUESTS = ((1, 2), (1, 3), (3, 3), (2, 2))
ROUNDS = 4


def why_not(runner: Runner, contract: Contract, images: int) -> str | None:
    """Run a few requests alone and together, and make each one's loss from its images' sums both times.

    Args:
        runner: Loaded.
        contract: Of its model.
        images: Most of a call.

    Returns:
        What is against computing requests together; None when nothing was found.
    """
    outputs = tuple(spec.name for spec in contract.outputs)
    rng = np.random.default_rng(0)
    sizes = [size for place, size in enumerate(REQUESTS) if sum(count for count, _ in REQUESTS[: place + 1]) <= images]
    try:
        for _ in range(ROUNDS):
            requests = [Request(_inputs(contract, runner.sizes, size, rng), outputs) for size in sizes]
            if SHARED in requests[0].inputs:
                points = {SHARED: requests[0].inputs[SHARED]}
                requests = [request._replace(inputs={**request.inputs, **points}) for request in requests]
            together = _compute(runner, contract, requests)
            for request, merged in zip(requests, together, strict=True):
                (alone,) = _compute(runner, contract, [request])
                for name in outputs:
                    if alone[name].tobytes() != merged[name].tobytes():
                        return f"this engine computes {name} of a request differently beside others"
    except Exception as error:
        return f"the engine does not take them so ({error})"
    return None


def _compute(runner: Runner, contract: Contract, requests: list[Request]) -> list[dict[str, Array]]:
    return split(contract, requests, runner.infer(merge(requests), computed_outputs(requests[0].outputs)))


def _inputs(
    contract: Contract, sizes: Mapping[str, int], size: tuple[int, int], rng: np.random.Generator
) -> dict[str, Array]:
    """Predictions and boxes at random, with all slots but the last of the first image filled."""
    images, slots = size
    axes = {**axis_sizes(contract, ROWS, COLUMNS), "C": CLASSES, **sizes, "B": images, "M": slots}
    side = max(strides_of(contract)) * max(ROWS, COLUMNS)
    inputs = {spec.name: _random(spec, axes, side, rng) for spec in contract.inputs}
    classes = axes["C"] if contract.kind == "assigner" else contract.hyperparameters["num_classes"]
    inputs["gt_labels"] %= classes
    inputs["mask_gt"][0, -1] = False
    return inputs


def _random(spec: TensorSpec, axes: Mapping[str, int], side: float, rng: np.random.Generator) -> Array:
    shape = shape_of(spec, axes)
    if spec.dtype == "bool":
        return np.ones(shape, bool)
    if spec.dtype == "int64":
        return rng.integers(0, 2**15, shape)
    if "bboxes" in spec.name:
        centre, half = rng.uniform(0, side, (*shape[:-1], 2)), rng.uniform(1, side / 2, (*shape[:-1], 2))
        return np.concatenate((centre - half, centre + half), axis=-1).astype(spec.dtype)
    if spec.name == "anc_points":
        return rng.uniform(0, side, shape).astype(spec.dtype)
    scores = 1 / (1 + np.exp(-rng.normal(0, 2, shape)))
    return (scores if spec.name == "pd_scores" else rng.normal(0, 2, shape)).astype(spec.dtype)

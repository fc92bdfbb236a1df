"""Several requests as one call of the engine: which may be put together, how, and what each gets back.

Only what is independent for each image is put together. The loss divides by a sum over the whole batch, so of a merged
call only the sums of images are taken, and each request's loss is made from its own images' sums, here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from yolo_assigner.export.contract import Contract, TensorSpec
from yolo_assigner.serve.detection.grid import strides_of
from yolo_assigner.serve.inference.runners.base import Runner
from yolo_assigner.serve.inference.runners.warm_up import axis_sizes, shape_of
from yolo_assigner.serve.wire.dtypes import Array

MERGEABLE = ("assigner", "loss")
GROUND_TRUTH = ("gt_labels", "gt_bboxes", "mask_gt")
SHARED = "anc_points"  # of all images of a request
MOST_POINTS = 2**20  # bytes of them, which are copied and compared where all requests pass
SUMS = "image_sums"
# What is made from the sums.
FINISHED = ("loss", "loss_items")


class Request(NamedTuple):
    """What one caller asks of a model.

    Attributes:
        inputs: All inputs of the model, in its types.
        outputs: Names of outputs.
    """

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]

    @property
    def images(self) -> int:
        """B; the ground truth is of every model's inputs."""
        return len(self.inputs["gt_bboxes"])

    @property
    def slots(self) -> int:
        """M."""
        return int(self.inputs["gt_bboxes"].shape[1])


def batch_key(request: Request) -> Hashable:
    """What requests must have in common to be put together; None: this one goes alone.

    The outputs, the sizes of everything but the numbers of images and slots, the anchor points, and slots to a power of
    two, so that padding at most doubles them and no request without slots is padded.
    """
    sizes = tuple((name, array.shape[1:]) for name, array in request.inputs.items() if name not in GROUND_TRUTH)
    shared = request.inputs.get(SHARED, np.empty(0))
    if shared.nbytes > MOST_POINTS:
        return None
    return frozenset(request.outputs), sizes, shared.tobytes(), request.slots.bit_length()


def computed_outputs(outputs: Sequence[str]) -> list[str]:
    """What the engine computes for these outputs: what is made from sums, too, so that no other graph is needed."""
    finished = any(name in FINISHED for name in outputs)
    return [*outputs, SUMS] if finished and SUMS not in outputs else list(outputs)


def merge(requests: Sequence[Request]) -> dict[str, Array]:
    """Inputs of all requests, one after the other.

    Args:
        requests: Of one batch_key, at least one.
    """
    first = requests[0].inputs
    if len(requests) == 1:
        return dict(first)
    slots = max(request.slots for request in requests)
    return {name: first[name] if name == SHARED else _joined(name, requests, slots) for name in first}


def split(contract: Contract, requests: Sequence[Request], computed: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Outputs of a merged call, for each request its own.

    Args:
        contract: The model's.
        requests: As merged.
        computed: The outputs that :func:`computed_outputs` names.

    Returns:
        For each request, in their order, the outputs that it asked for.
    """
    ends = np.cumsum([request.images for request in requests])
    of_images = {name: array for name, array in computed.items() if name not in FINISHED}
    return [
        _own(contract, request, {name: array[end - request.images : end] for name, array in of_images.items()})
        for request, end in zip(requests, ends, strict=True)
    ]


def _joined(name: str, requests: Sequence[Request], slots: int) -> Array:
    arrays = [request.inputs[name] for request in requests]
    if name not in GROUND_TRUTH:
        return np.concatenate(arrays)
    joined = np.zeros((sum(map(len, arrays)), slots, *arrays[0].shape[2:]), arrays[0].dtype)
    start = 0
    for array in arrays:
        joined[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return joined


def _own(contract: Contract, request: Request, rows: dict[str, Array]) -> dict[str, Array]:
    finished = _finish(rows[SUMS], contract.gains) if SUMS in rows else {}
    return {name: (rows | finished)[name] for name in request.outputs}


def _finish(sums: Array, gains: Sequence[float]) -> dict[str, Array]:
    """The loss as the graph makes it, in float32 and the graph's order: its results are equal to the bit on a CPU."""
    with np.errstate(all="ignore"):  # predictions without bounds have losses without
        total = np.add.reduce(sums, axis=0, dtype=np.float32)  # row by row
        items = total[:3] / np.maximum(total[3], np.float32(1)) * np.array(gains, np.float32)
        loss = (items[0] + items[1] + items[2]) * np.float32(len(sums))
    return {"loss": np.asarray(loss, np.float32), "loss_items": items}


# Cells of the coarsest level: odd, so that images begin anywhere in memory.
ROWS, COLUMNS = 3, 5
CLASSES = 3
# Images and slots of each request: slots of one power of two, some requests of several images.
REQUESTS = ((1, 2), (1, 3), (3, 3), (2, 2))
ROUNDS = 4


def check_batch_invariance(runner: Runner, contract: Contract, images: int) -> str | None:
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

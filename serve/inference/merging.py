"""Merges several requests into one call of the engine and splits the outputs again.

Only what is independent for each image is merged. The loss divides by a sum over the whole batch, so a merged call
computes the sums of each image, and each request's loss is made here from the sums of its own images.
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

BATCHABLE_KINDS = ("assigner", "loss")
GROUND_TRUTH = ("gt_labels", "gt_bboxes", "mask_gt")
POINTS = "anc_points"  # (A, 2), one set for all images of a request; or (S, A, 2), where S is 1 or B
POINTS_AXES = ("A", 2)  # of models of which all images of a call have the same points
MOST_SHARED_BYTES = 2**20  # larger ones are not copied into keys
SUMS = "image_sums"
FINISHED = ("loss", "loss_items")  # made from the sums

# The batch-invariance check. Cells of the coarsest level are odd, so that images begin anywhere in memory.
ROWS, COLUMNS = 3, 5
CLASSES = 3
# Images and slots of each request: slots up to one power of two, some requests of several images.
REQUEST_SIZES = ((1, 2), (1, 3), (3, 3), (2, 2))
ROUNDS = 4


class Request(NamedTuple):
    """The inputs and outputs of one caller.

    Attributes:
        inputs: All inputs of the model, in its types.
        outputs: Names of outputs.
    """

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]

    @property
    def images(self) -> int:
        """B; every model takes ground truth."""
        return len(self.inputs["gt_bboxes"])

    @property
    def slots(self) -> int:
        """M."""
        return int(self.inputs["gt_bboxes"].shape[1])


def batch_key(request: Request) -> Hashable:
    """Make the key that requests must share to be merged; None: the request is computed alone.

    The key holds the outputs, the sizes of all axes but images and slots, anchor points that all images of a call must
    share, and the power of two of the slots: padding at most doubles them, and a request without slots is never padded.
    """
    sizes = tuple((name, array.shape[1:]) for name, array in request.inputs.items() if name not in GROUND_TRUTH)
    shared = request.inputs.get(POINTS, np.empty(0))
    if shared.ndim > len(POINTS_AXES):
        shared = np.empty(0)
    if shared.nbytes > MOST_SHARED_BYTES:
        return None
    return frozenset(request.outputs), sizes, shared.tobytes(), request.slots.bit_length()


def computed_outputs(outputs: Sequence[str]) -> list[str]:
    """Name what the engine computes for these outputs.

    The loss is requested beside the sums although it is not used: another set of outputs would need another graph.
    """
    finished = any(name in FINISHED for name in outputs)
    return [*outputs, SUMS] if finished and SUMS not in outputs else list(outputs)


def merge(requests: Sequence[Request]) -> dict[str, Array]:
    """Concatenate the inputs of requests that share a batch key, padding slots with zeros.

    Args:
        requests: At least one.
    """
    first = requests[0].inputs
    if len(requests) == 1:
        return dict(first)
    slots = max(request.slots for request in requests)
    return {name: _joined(name, requests, slots) for name in first}


def split(contract: Contract, requests: Sequence[Request], computed: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Give each request the outputs of its own images.

    Args:
        contract: Contract of the model.
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
    if name == POINTS:
        return _joined_points(requests, arrays)
    if name not in GROUND_TRUTH:
        return np.concatenate(arrays)
    joined = np.zeros((sum(map(len, arrays)), slots, *arrays[0].shape[2:]), arrays[0].dtype)
    start = 0
    for array in arrays:
        joined[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return joined


def _joined_points(requests: Sequence[Request], arrays: Sequence[Array]) -> Array:
    """One set of points where all requests have the same, else one for each image."""
    first = arrays[0]
    if first.ndim == len(POINTS_AXES) or all(len(array) == 1 and np.array_equal(array, first) for array in arrays):
        return first
    sets = [(request.images, *first.shape[1:]) for request in requests]
    return np.concatenate([np.broadcast_to(array, shape) for array, shape in zip(arrays, sets, strict=True)])


def _own(contract: Contract, request: Request, rows: dict[str, Array]) -> dict[str, Array]:
    finished = _finish(rows[SUMS], contract.gains) if SUMS in rows else {}
    return {name: (rows | finished)[name] for name in request.outputs}


def _finish(sums: Array, gains: Sequence[float]) -> dict[str, Array]:
    """Make the loss in the graph's float32 operations and order, so that it is equal to the bit on a CPU."""
    with np.errstate(all="ignore"):  # unbounded predictions have unbounded losses
        total = np.add.reduce(sums, axis=0, dtype=np.float32)  # row by row
        items = total[:3] / np.maximum(total[3], np.float32(1)) * np.array(gains, np.float32)
        loss = (items[0] + items[1] + items[2]) * np.float32(len(sums))
    return {"loss": np.asarray(loss, np.float32), "loss_items": items}


def check_batch_invariance(runner: Runner, contract: Contract, images: int) -> str | None:
    """Compute a few random requests alone and merged, and compare the outputs to the bit.

    Args:
        runner: A loaded runner.
        contract: Contract of its model.
        images: Most images of a call.

    Returns:
        Why requests must not be merged; None when no difference was found.
    """
    outputs = tuple(spec.name for spec in contract.outputs)
    rng = np.random.default_rng(0)
    images_until = np.cumsum([count for count, _ in REQUEST_SIZES])
    sizes = [size for size, total in zip(REQUEST_SIZES, images_until, strict=True) if total <= images]
    try:
        for place in range(ROUNDS):
            requests = [Request(_inputs(contract, runner.sizes, size, rng), outputs) for size in sizes]
            points = requests[0].inputs.get(POINTS)
            if points is not None and (place % 2 == 0 or points.ndim == len(POINTS_AXES)):
                requests = [request._replace(inputs={**request.inputs, POINTS: points}) for request in requests]
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
    """Random predictions and boxes; all slots are filled but the last one of the first image."""
    images, slots = size
    # Requests of three images have points of all of them, others those of each.
    axes = {**axis_sizes(contract, ROWS, COLUMNS), "C": CLASSES, **sizes, "B": images, "M": slots, "S": images % 3 or 1}
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
    if spec.name == POINTS:
        return rng.uniform(0, side, shape).astype(spec.dtype)
    scores = 1 / (1 + np.exp(-rng.normal(0, 2, shape)))
    return (scores if spec.name == "pd_scores" else rng.normal(0, 2, shape)).astype(spec.dtype)

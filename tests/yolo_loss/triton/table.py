"""Launches, bytes and memory of a loss step at 640 px with 80 classes, counted on tensors without values.

``python -m tests.yolo_loss.triton.table`` writes the table of docs/gpu.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.yolo_loss.triton.launches import META, Launch, recorded, tensors_in
from yolo_assigner.export.samples import pyramid
from yolo_loss import DetectionLoss, GroundTruth, LossResult
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
CLASSES, REG_MAX = 80, 16
# Arguments of which a kernel reads or writes every element. Of others it reads what lies in a box or is foreground.
WHOLE = {
    "write_anchors": ("points", "scales"),
    "decode": ("distri", "points", "scales", "boxes", "zeroed"),
    "select_topk": ("truth", "labels", "valid"),
    "resolve_conflicts": ("claims", "owner", "metric"),
    "keep_topk2": ("truth", "valid", "max_metric", "max_iou"),
    "weigh": ("owner", "foreground", "gt_idx", "weights"),
    "class_pass": ("logits", "logit_grads", "owner", "weights"),
    "box_pass": ("distri_grads", "owner"),
    "combine": ("class_sums", "box_sums", "dfl_sums", "clipped_counts", "clipped_lengths", "weight_sums"),
    "scale_gradients": (),  # nothing where the derivative is 1
}


class Counted(NamedTuple):
    """Counts of a step.

    Attributes:
        kernels: Name of each launch, and the bytes of which it reads or writes every one.
        operations: Of torch, that launch a kernel.
        floor: Bytes of the maps, read and written once, and of the ground truth.
    """

    kernels: list[tuple[str, int]]
    operations: list[str]
    floor: int

    @property
    def launches(self) -> int:
        """Of kernels and operations."""
        return len(self.kernels) + len(self.operations)

    @property
    def bytes(self) -> int:
        """Of all kernels."""
        return sum(size for _, size in self.kernels)


class Inputs(NamedTuple):
    """Maps that require gradients, and padded ground truth."""

    leaves: list[Tensor]
    truth: GroundTruth


def count(dtype: torch.dtype, images: int, slots: int, **options: Any) -> Counted:
    """Count a training step from maps and padded ground truth on the device."""
    inputs = _inputs(dtype, images, slots)
    with recorded() as found:
        _run(inputs, **options)
    kernels = [(launch.name, _bytes_of(launch)) for launch in found.kernels]
    return Counted(kernels, found.operations, 2 * _size(inputs.leaves) + _size(list(inputs.truth)))


def bytes_above(dtype: torch.dtype, images: int, slots: int) -> int:
    """Bytes that a step allocates above its inputs and outputs, as if nothing were freed before its end."""
    inputs = _inputs(dtype, images, slots)
    with _Allocations() as allocated:
        result = _run(inputs)
    outputs = [result.loss, result.loss_items, result.image_sums, *result.assignment]
    gradients = [leaf.grad for leaf in inputs.leaves if leaf.grad is not None]
    assert len(gradients) == len(inputs.leaves)
    above: int = allocated.bytes - _size([*outputs, *gradients])
    return above


def _inputs(dtype: torch.dtype, images: int, slots: int) -> Inputs:
    grids, channels = pyramid(640, 640, STRIDES), 4 * REG_MAX + CLASSES
    leaves = [torch.empty(images, channels, *grid, dtype=dtype, device=META).requires_grad_() for grid in grids]
    kinds = ((1, torch.int64), (4, torch.float32), (1, torch.bool))
    fields = (torch.empty(images, slots, width, dtype=kind, device=META) for width, kind in kinds)
    return Inputs(leaves, GroundTruth(*fields))


def _run(inputs: Inputs, **options: Any) -> LossResult:
    criterion = DetectionLoss(CLASSES, STRIDES, REG_MAX, implementation="triton", **options)
    joined = join_predictions(inputs.leaves, STRIDES, CLASSES, REG_MAX, criterion.anchor_maker)
    result = criterion.from_padded(joined, inputs.truth)
    result.loss.backward()
    return result


def _bytes_of(launch: Launch) -> int:
    return _size(tensors_in([launch.arguments[name] for name in WHOLE[launch.name]]))


def _size(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations return in memory of their own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.endswith("_") and name != "detach":
            self.bytes += _size(tensors_in(returned))
        return returned


def table(counted: Counted) -> str:
    """The launches of a step, in their order, with the bytes that each moves."""
    lines = ["| launch | MB |", "| --- | --- |"]
    lines += [f"| `{name}` | {size / 1e6:.1f} |" for name, size in counted.kernels]
    lines += [f"| torch: `{name}` | 0.0 |" for name in counted.operations]
    total = f"| {counted.launches} launches | {counted.bytes / 1e6:.1f}, of which the maps and gradients "
    return "\n".join([*lines, f"{total}{counted.floor / 1e6:.1f} |"])


if __name__ == "__main__":
    print(table(count(torch.float32, images=16, slots=30)))
    above = bytes_above(torch.float32, images=16, slots=300)
    print(f"\nabove inputs and outputs at 16 x 300: {above / 2**20:.1f} MiB")

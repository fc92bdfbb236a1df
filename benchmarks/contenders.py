"""Contenders: the reference, this project in torch, and its exported models, as functions of an input set's number."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.common.inputs import REG_MAX, STRIDES, Inputs, Setting, make_inputs
from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.specs import input_specs
from yolo_loss import PRESETS, DetectionLoss, TaskAlignedAssigner
from yolo_loss.assigner import IMPLEMENTATIONS

if TYPE_CHECKING:
    from yolo_assigner.serve.inference.runners.onnx_runtime import OnnxRuntimeRunner

PRESET = "ultralytics-8.4"
HYPERPARAMETERS: dict[str, Any] = {"topk": 10, "alpha": 0.5, "beta": 6.0}
NAMES = ("reference", "torch", "compile", "onnx")
OUTPUTS = {
    "assigner": ("target_scores", "target_bboxes", "target_labels", "fg_mask"),
    "loss": ("loss", "loss_items"),
}
Contender = Callable[[], object]
Run = Callable[[int], object]
os.environ.setdefault("YOLO_VERBOSE", "false")
# One process here compiles for more class counts and tasks than a user's does; each is a program of its own.
torch._dynamo.config.recompile_limit = 64


def settle_allocator() -> None:
    """Let the C library keep freed memory, as in any process that has run for a while.

    glibc derives its thresholds from the blocks that were freed. In a fresh process every large temporary is new memory
    from the system, page by page, and the first contender to free a large block would help those after it.
    """
    torch.zeros(31 * 2**18)


def contenders(setting: Setting, names: Collection[str] = NAMES) -> dict[str, Contender]:
    """Functions to time on the CPU, on the same seeded inputs.

    Args:
        setting: Task and sizes.
        names: Some of ``reference``, ``torch``, ``compile`` and ``onnx``; gradients are not exported.
    """
    sets = [make_inputs(setting)]
    makers: dict[str, Callable[[], Contender]] = {
        "reference": lambda: partial(reference(setting, sets), 0),
        "torch": lambda: partial(ours(setting, sets), 0),
        "compile": lambda: partial(ours(setting, sets, compile_kernels=True), 0),
    }
    if setting.task != "loss+grad":
        makers["onnx"] = lambda: _onnx(setting)
    return {name: make() for name, make in makers.items() if name in names}


def implementations(setting: Setting) -> dict[str, Contender]:
    """The assigner in each implementation, in torch and exported."""
    sets = [make_inputs(setting)]
    runs: dict[str, Contender] = {}
    for name in IMPLEMENTATIONS:
        runs[f"torch {name}"] = partial(ours(setting, sets, implementation=name), 0)
        runs[f"onnx {name}"] = _onnx(setting, name)
    return runs


def ours(setting: Setting, sets: Sequence[Inputs], autocast: bool = False, **options: Any) -> Run:
    """Our assigner, or our criterion alone or with its gradients.

    Args:
        setting: Task and sizes.
        sets: Input sets.
        autocast: Whether the criterion runs under autocast, to float16 on a GPU and bfloat16 on a CPU.
        **options: Further options of the assigner or the criterion, as ``implementation``.
    """
    if setting.task == "assigner":
        assigner = assigner_of(setting, **options)
        return lambda number: assigner(*sets[number].predictions, *sets[number].truth)
    criterion: Callable[..., Any] = criterion_of(setting, **options)
    if autocast:
        device = sets[0].truth.gt_bboxes.device.type
        half = torch.bfloat16 if device == "cpu" else torch.float16
        criterion = partial(_under_autocast, criterion, torch.autocast(device, half))
    leaves = [[level.detach().requires_grad_() for level in inputs.predictions] for inputs in sets]
    return _stepping(setting, lambda number: criterion(leaves[number], sets[number].batch)[0], leaves)


def assigner_of(setting: Setting, **options: Any) -> TaskAlignedAssigner:
    """Our assigner with the benchmark's hyper-parameters, and other options."""
    return TaskAlignedAssigner(**{**HYPERPARAMETERS, **PRESETS[PRESET], "num_classes": setting.classes, **options})


def criterion_of(setting: Setting, strides: Sequence[float] = STRIDES, **options: Any) -> DetectionLoss:
    """Our criterion with the benchmark's hyper-parameters, and other options."""
    return DetectionLoss(
        setting.classes, strides, **{"reg_max": REG_MAX, "preset": PRESET, **HYPERPARAMETERS, **options}
    )


def _under_autocast(criterion: Callable[..., Any], autocast: torch.autocast, *arguments: Any) -> Any:
    with autocast:
        return criterion(*arguments)


def _stepping(setting: Setting, loss: Callable[[int], Tensor], leaves: Sequence[Sequence[Tensor]]) -> Run:
    """Run the forward pass, or forward and backward and return the gradients."""
    if setting.task == "loss":
        return torch.no_grad()(loss)

    def step(number: int) -> tuple[Tensor, ...]:
        value = loss(number)
        return value.detach(), *torch.autograd.grad(value.sum(), leaves[number])

    return step


def reference(setting: Setting, sets: Sequence[Inputs]) -> Run:
    """The reference package on the same inputs.

    Raises:
        ImportError: It is not installed.
    """
    from ultralytics.utils.loss import v8DetectionLoss as ReferenceLoss
    from ultralytics.utils.tal import TaskAlignedAssigner as ReferenceAssigner

    from benchmarks.parity import as_dict
    from yolo_assigner.models import DetectionModel, DetectorConfig  # needs safetensors

    if setting.task == "assigner":
        assigner = ReferenceAssigner(**HYPERPARAMETERS, num_classes=setting.classes, stride=list(STRIDES))
        return lambda number: assigner(*sets[number].predictions, *sets[number].truth)
    model = DetectionModel(DetectorConfig("n", nc=setting.classes)).to(sets[0].truth.gt_bboxes.device)
    heads = [as_dict(list(inputs.predictions), setting.classes) for inputs in sets]
    leaves = [[head[name].contiguous().requires_grad_() for name in ("boxes", "scores")] for head in heads]
    for head, (boxes, scores) in zip(heads, leaves, strict=True):
        head |= {"boxes": boxes, "scores": scores}
    return _stepping(setting, partial(_reference_loss, ReferenceLoss(model), heads, sets), leaves)


def _reference_loss(criterion: Any, heads: Sequence[dict[str, Any]], sets: Sequence[Inputs], number: int) -> Tensor:
    loss: Tensor = criterion(heads[number], sets[number].batch)[0]
    return loss


@cache
def _runner(kind: str, classes: int, implementation: str) -> OnnxRuntimeRunner:
    """Export a model and load it as the server does."""
    from yolo_assigner.export.to_onnx.exporter import export_onnx
    from yolo_assigner.serve.inference.runners.onnx_runtime import OnnxRuntimeRunner

    hyperparameters = Hyperparameters(num_classes=classes, preset=PRESET)
    path, contract = export_onnx(kind, hyperparameters, Path(mkdtemp()), implementation=implementation)
    runner = OnnxRuntimeRunner(path, contract.default_outputs)
    runner.load()
    return runner


def _onnx(setting: Setting, implementation: str = "sparse") -> Contender:
    feed = onnx_feed(setting)
    runner = _runner(setting.task, setting.classes, implementation)
    return lambda: runner.infer(feed, OUTPUTS[setting.task])


def onnx_feed(setting: Setting) -> dict[str, Any]:
    """Inputs of the exported model by name."""
    specs = input_specs(setting.task, Hyperparameters(num_classes=setting.classes))
    return feed_of(specs, make_inputs(setting))


def feed_of(specs: Sequence[TensorSpec], inputs: Inputs) -> dict[str, Any]:
    """Inputs of an exported model by name, in the host's memory."""
    values = (value.cpu().numpy() for value in (*inputs.predictions, *inputs.truth))
    # Points of all images have no axis of sets.
    return {
        spec.name: value if value.ndim == len(spec.axes) else value[None]
        for spec, value in zip(specs, values, strict=True)
    }

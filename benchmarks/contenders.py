"""Contenders: the reference, this project in torch, and its exported models, as functions without arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from yolo_assigner.export.specs import input_specs
from yolo_loss import PRESETS, GroundTruth, TaskAlignedAssigner, v8DetectionLoss
from yolo_loss.assigner import IMPLEMENTATIONS

if TYPE_CHECKING:
    from yolo_assigner.serve.inference.runners.onnx_runtime import OnnxRuntimeRunner

STRIDES = (8.0, 16.0, 32.0)
PRESET = "ultralytics-8.4"
HYPERPARAMETERS: dict[str, Any] = {"topk": 10, "alpha": 0.5, "beta": 6.0}
NAMES = ("reference", "torch", "compile", "onnx")
OUTPUTS = {
    "assigner": ("target_scores", "target_bboxes", "target_labels", "fg_mask"),
    "loss": ("loss", "loss_items"),
}
Contender = Callable[[], object]
os.environ.setdefault("YOLO_VERBOSE", "false")
# One process here compiles for more class counts and tasks than a user's does; each is a program of its own.
torch._dynamo.config.recompile_limit = 64


class Setting(NamedTuple):
    """One line of the benchmark.

    Attributes:
        task: ``assigner``, ``loss`` (forward) or ``loss+grad`` (forward and backward).
        batch: B.
        slots: M.
        image: Side in pixels.
        classes: C.
    """

    task: str
    batch: int
    slots: int
    image: int = 640
    classes: int = 80

    @property
    def case(self) -> Case:
        """The sizes as :mod:`yolo_assigner.export.samples` takes them."""
        return Case(self.batch, self.slots, pyramid(self.image, self.image, STRIDES), self.classes)


TASKS = ("assigner", "loss", "loss+grad")


def settle_allocator() -> None:
    """Let the C library keep freed memory, as in any process that has run for a while.

    glibc derives its thresholds from the blocks that were freed. In a fresh process every large temporary is new memory
    from the system, page by page, and the first contender to free a large block would help those after it.
    """
    torch.zeros(31 * 2**18)


def contenders(setting: Setting, names: Collection[str] = NAMES) -> dict[str, Contender]:
    """Functions to time, on the same seeded inputs.

    Args:
        setting: Task and sizes.
        names: Some of ``reference``, ``torch``, ``compile`` and ``onnx``; gradients are not exported.
    """
    makers = _assigners(setting) if setting.task == "assigner" else _losses(setting)
    return {name: make() for name, make in makers.items() if name in names}


def _assigners(setting: Setting) -> dict[str, Callable[[], Contender]]:
    from ultralytics.utils.tal import TaskAlignedAssigner as Reference

    inputs = sample_assigner_inputs(setting.case, STRIDES, seed=1)
    options = {**HYPERPARAMETERS, "num_classes": setting.classes}

    def ours(compile_kernels: bool) -> Contender:
        assigner = TaskAlignedAssigner(**options, **PRESETS[PRESET], compile_kernels=compile_kernels)
        return lambda: assigner(*inputs)

    def reference() -> Contender:
        assigner = Reference(**options, stride=list(STRIDES))
        return lambda: assigner(*inputs)

    return {
        "reference": reference,
        "torch": lambda: ours(False),
        "compile": lambda: ours(True),
        "onnx": lambda: _onnx(setting),
    }


def implementations(setting: Setting) -> dict[str, Contender]:
    """The assigner in each implementation, in torch and exported."""
    inputs = sample_assigner_inputs(setting.case, STRIDES, seed=1)
    runs: dict[str, Contender] = {}
    for name in IMPLEMENTATIONS:
        assigner = TaskAlignedAssigner(
            **HYPERPARAMETERS, num_classes=setting.classes, **PRESETS[PRESET], implementation=name
        )
        runs[f"torch {name}"] = partial(assigner, *inputs)
        runs[f"onnx {name}"] = _onnx(setting, name)
    return runs


def _losses(setting: Setting) -> dict[str, Callable[[], Contender]]:
    from ultralytics.utils.loss import v8DetectionLoss as Reference

    from benchmarks.parity import as_dict
    from yolo_assigner.models import DetectionModel, DetectorConfig

    feats, *rest = sample_loss_inputs(setting.case, STRIDES, 16, seed=1)
    batch = ragged_batch(GroundTruth(*rest), (setting.image, setting.image))
    model = DetectionModel(DetectorConfig("n", nc=setting.classes))
    reference = Reference(model)
    joined = as_dict(feats, setting.classes)

    def ours(compile_kernels: bool) -> v8DetectionLoss:
        return v8DetectionLoss(model, preset=PRESET, compile_kernels=compile_kernels)

    def forward(loss: Callable[..., object], preds: object) -> Contender:
        return torch.no_grad()(lambda: loss(preds, batch))

    def backward(loss: Callable[..., tuple[Tensor, object]], preds: object, leaves: list[Tensor]) -> Contender:
        return lambda: _backward(loss(preds, batch)[0], leaves)

    if setting.task == "loss":
        return {
            "reference": lambda: forward(reference, joined),
            "torch": lambda: forward(ours(False), feats),
            "compile": lambda: forward(ours(True), feats),
            "onnx": lambda: _onnx(setting),
        }
    leaves = [joined[name].contiguous().requires_grad_() for name in ("boxes", "scores")]
    levels = [feat.clone().requires_grad_() for feat in feats]
    heads = {"boxes": leaves[0], "scores": leaves[1], "feats": feats}
    return {
        "reference": lambda: backward(reference, heads, leaves),
        "torch": lambda: backward(ours(False), levels, levels),
        "compile": lambda: backward(ours(True), levels, levels),
    }


def _backward(loss: Tensor, leaves: list[Tensor]) -> None:
    loss.sum().backward()
    for leaf in leaves:
        leaf.grad = None


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
    if setting.task == "assigner":
        tensors = list(sample_assigner_inputs(setting.case, STRIDES, seed=1))
    else:
        feats, *rest = sample_loss_inputs(setting.case, STRIDES, 16, seed=1)
        tensors = [*feats, *rest]
    names = [spec.name for spec in input_specs(setting.task, Hyperparameters(num_classes=setting.classes))]
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}

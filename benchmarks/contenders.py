"""What is timed: the reference, this project in torch and its exported models, as functions without arguments."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.parity import as_dict
from export.build import Hyperparameters, input_specs
from export.onnx_export import export_onnx
from export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from models import DetectionModel, DetectorConfig
from serve.engine import OnnxRuntimeEngine
from yolo_loss import PRESETS, GroundTruth, TaskAlignedAssigner, v8DetectionLoss

STRIDES = (8.0, 16.0, 32.0)
PRESET = "ultralytics-8.4"
NUMBERS: dict[str, Any] = {"topk": 10, "alpha": 0.5, "beta": 6.0}
Contender = Callable[[], object]
os.environ.setdefault("YOLO_VERBOSE", "false")


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
        """As the samples take it."""
        return Case(self.batch, self.slots, pyramid(self.image, self.image, STRIDES), self.classes)


def contenders(setting: Setting) -> dict[str, Contender]:
    """Functions to time, on the same seeded input: ``reference``, ``torch`` and, but for gradients, ``onnx``."""
    if setting.task == "assigner":
        return _assigners(setting)
    return _losses(setting)


def _assigners(setting: Setting) -> dict[str, Contender]:
    from ultralytics.utils.tal import TaskAlignedAssigner as Reference

    inputs = sample_assigner_inputs(setting.case, STRIDES, seed=1)
    numbers = {**NUMBERS, "num_classes": setting.classes}
    reference = Reference(**numbers, stride=list(STRIDES))
    ours = TaskAlignedAssigner(**numbers, **PRESETS[PRESET])
    return {
        "reference": lambda: reference(*inputs),
        "torch": lambda: ours(*inputs),
        "onnx": _onnx("assigner", 80, list(inputs), ("target_scores", "target_bboxes", "target_labels", "fg_mask")),
    }


def _losses(setting: Setting) -> dict[str, Contender]:
    from ultralytics.utils.loss import v8DetectionLoss as Reference

    feats, *rest = sample_loss_inputs(setting.case, STRIDES, 16, seed=1)
    batch = ragged_batch(GroundTruth(*rest), (setting.image, setting.image))
    model = DetectionModel(DetectorConfig("n", nc=setting.classes))
    reference, ours = Reference(model), v8DetectionLoss(model, preset=PRESET)
    joined = as_dict(feats, setting.classes)
    if setting.task == "loss":
        return {
            "reference": torch.no_grad()(lambda: reference(joined, batch)),
            "torch": torch.no_grad()(lambda: ours(feats, batch)),
            "onnx": _onnx("loss", setting.classes, [*feats, *rest], ("loss", "loss_items")),
        }
    leaves = [joined[name].contiguous().requires_grad_() for name in ("boxes", "scores")]
    levels = [feat.clone().requires_grad_() for feat in feats]
    heads = {"boxes": leaves[0], "scores": leaves[1], "feats": feats}
    return {
        "reference": lambda: _backward(reference(heads, batch)[0], leaves),
        "torch": lambda: _backward(ours(levels, batch)[0], levels),
    }


def _backward(loss: Tensor, leaves: list[Tensor]) -> None:
    loss.sum().backward()
    for leaf in leaves:
        leaf.grad = None


@cache
def _engine(kind: str, classes: int) -> OnnxRuntimeEngine:
    """Our exported model as the server runs it."""
    path, contract = export_onnx(kind, Hyperparameters(num_classes=classes, preset=PRESET), Path(mkdtemp()))
    engine = OnnxRuntimeEngine(path, contract.default_outputs)
    engine.load()
    return engine


def _onnx(kind: str, classes: int, tensors: list[Tensor], outputs: tuple[str, ...]) -> Contender:
    names = [spec.name for spec in input_specs(kind, Hyperparameters(num_classes=classes))]
    feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    engine = _engine(kind, classes)
    return lambda: engine.infer(feed, outputs)

"""Contenders of the GPU benchmark, as functions of the number of an input set."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import contenders
from benchmarks.contenders import HYPERPARAMETERS, STRIDES, Setting
from benchmarks.gpu.clock import MissingError, Run
from benchmarks.gpu.exported import onnx_runtime
from benchmarks.gpu.floor import REG_MAX
from benchmarks.gpu.inputs import Inputs
from yolo_loss import PRESETS, DetectionLoss, TaskAlignedAssigner

REFERENCE = "reference"
# Names: an implementation, and how it is run. Exported models and the reference take float32 alone.
EAGER, COMPILED = ("auto", "triton", "sparse"), ("auto compiled", "auto compiled graph")
GRAPHS, EXPORTED = ("auto graph", "triton graph"), ("onnxruntime dense", "onnxruntime sparse")
OURS = (*EAGER, *GRAPHS, *EXPORTED, *COMPILED)


def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device; on a CPU they do in its interpreter."""
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and importlib.util.find_spec("triton") is not None


def make(setting: Setting, name: str, sets: Sequence[Inputs], folders: Sequence[Path]) -> Run:
    """Make a contender: one of ``OURS``, or the reference.

    Args:
        setting: Task and sizes.
        name: Name of the contender.
        sets: Input sets.
        folders: Folders of the exported models.

    Raises:
        MissingError: It needs a GPU, or a package that is not installed.
        ContractError: Its exported model is missing.
    """
    if name == REFERENCE:
        return reference(setting, sets)
    if name in EXPORTED:
        return onnx_runtime(setting, name.split()[1], sets, folders)
    return ours(setting, name, sets)


def ours(setting: Setting, name: str, sets: Sequence[Inputs]) -> Run:
    """A contender in torch.

    Args:
        setting: Task and sizes.
        name: An implementation, then ``compiled`` where torch.compile takes the heavy parts, then ``graph`` for a CUDA
            graph.
        sets: Input sets.

    Raises:
        MissingError: It needs a GPU, or a package that is not installed.
    """
    implementation, *words = name.split()
    device = sets[0].truth.gt_bboxes.device
    if implementation == "triton" and not has_triton(device):
        raise MissingError("Triton's kernels need the package triton and a GPU")
    if "graph" in words and device.type != "cuda":
        raise MissingError("CUDA graphs need a GPU")
    run = (_assigner if setting.task == "assigner" else _loss)(setting, implementation, "compiled" in words, sets)
    return captured(run, len(sets)) if "graph" in words else run


def _assigner(setting: Setting, implementation: str, compiled: bool, sets: Sequence[Inputs]) -> Run:
    options = {**HYPERPARAMETERS, **PRESETS[contenders.PRESET], "num_classes": setting.classes}
    assigner = TaskAlignedAssigner(**options, implementation=implementation, compile_kernels=compiled)
    return lambda number: assigner(*sets[number].predictions, *sets[number].truth)


def _loss(setting: Setting, implementation: str, compiled: bool, sets: Sequence[Inputs]) -> Run:
    criterion = criterion_of(setting, implementation, compiled)
    leaves = [[level.detach().requires_grad_() for level in inputs.predictions] for inputs in sets]
    return _stepping(setting, lambda number: criterion(leaves[number], sets[number].batch)[0], leaves)


def criterion_of(
    setting: Setting, implementation: str, compiled: bool = False, strides: Sequence[float] = STRIDES, **options: Any
) -> DetectionLoss:
    """Our criterion with M slots given, so that boxes need not be counted."""
    options = {
        "reg_max": REG_MAX,
        "preset": contenders.PRESET,
        "max_boxes": setting.slots,
        **HYPERPARAMETERS,
        **options,
    }
    return DetectionLoss(setting.classes, strides, implementation=implementation, compile_kernels=compiled, **options)


def _stepping(setting: Setting, loss: Callable[[int], Tensor], leaves: Sequence[Sequence[Tensor]]) -> Run:
    """Run the forward pass, or forward and backward and return the gradients."""
    if setting.task == "loss":
        return torch.no_grad()(loss)

    def step(number: int) -> tuple[Tensor, ...]:
        value = loss(number)
        return value.detach(), *torch.autograd.grad(value.sum(), leaves[number])

    return step


def captured(run: Run, sets: int) -> Run:
    """Capture CUDA graphs of a contender, one for each input set, because addresses are part of a graph.

    Raises:
        Exception: CUDA cannot capture work that waits for the host.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for turn in range(max(3, sets)):
            run(turn % sets)
    torch.cuda.current_stream().wait_stream(side)
    graphs, results = [], []
    pool = torch.cuda.graph_pool_handle()
    for number in range(sets):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            results.append(run(number))
        graphs.append(graph)

    def replay(number: int) -> object:
        graphs[number].replay()
        return results[number]

    return replay


def reference(setting: Setting, sets: Sequence[Inputs]) -> Run:
    """The reference package on the same inputs.

    Raises:
        MissingError: It is not installed.
    """
    try:
        from ultralytics.utils.loss import v8DetectionLoss as ReferenceLoss
        from ultralytics.utils.tal import TaskAlignedAssigner as ReferenceAssigner
    except ImportError as error:
        raise MissingError(f"not installed ({error})") from error
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

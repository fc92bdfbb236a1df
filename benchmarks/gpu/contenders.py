"""Contenders of the GPU benchmark, as functions of the number of an input set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import contenders
from benchmarks.contenders import HYPERPARAMETERS, STRIDES, Setting
from benchmarks.gpu.clock import MissingError, Run
from benchmarks.gpu.floor import REG_MAX
from benchmarks.gpu.inputs import Inputs
from benchmarks.gpu.runtimes import onnx_runtime, tensorrt
from yolo_loss import PRESETS, DetectionLoss, GroundTruth, TaskAlignedAssigner
from yolo_loss.predictions import join_predictions
from yolo_loss.triton.launch import available

Maker = Callable[[], Run]
REFERENCE = "reference"
# Names: an implementation, and how it is run.
WAYS = {
    "assigner": (
        *("auto", "auto compiled", "auto graph", "auto compiled graph"),
        *("triton", "triton graph", "sparse", "sparse compiled"),
    ),
    "loss": (
        *("auto", "auto compiled", "auto graph", "auto compiled graph"),
        *("triton", "triton graph", "dense", "dense graph", "dense whole", "dense whole graph"),
        *("sparse", "sparse compiled"),
    ),
}


def ways_of(task: str) -> tuple[str, ...]:
    """Names of our contenders in torch."""
    return WAYS["assigner" if task == "assigner" else "loss"]


def ours(setting: Setting, name: str, sets: Sequence[Inputs]) -> Run:
    """One of :func:`ways_of`.

    Args:
        setting: Task and sizes.
        name: An implementation, then ``compiled`` where torch.compile takes the heavy parts or ``whole`` where it takes
            all, then ``graph`` for a CUDA graph.
        sets: Input sets.

    Raises:
        MissingError: It needs a GPU, or a package that is not installed.
    """
    implementation, *words = name.split()
    if implementation == "triton":
        _need_triton(sets[0].truth.gt_bboxes.device)
    if "graph" in words and sets[0].truth.gt_bboxes.device.type != "cuda":
        raise MissingError("CUDA graphs need a GPU")
    if "whole" in words:
        run = _whole(setting, implementation, sets)
    elif setting.task == "assigner":
        run = _assigner(setting, implementation, "compiled" in words, sets)
    else:
        run = _loss(setting, implementation, "compiled" in words, sets)
    return captured(run, len(sets)) if "graph" in words else run


def _need_triton(device: torch.device) -> None:
    if not available():
        raise MissingError("the package triton is not installed")
    if device.type != "cuda":
        raise MissingError("Triton's kernels need a GPU")


def _assigner(setting: Setting, implementation: str, compiled: bool, sets: Sequence[Inputs]) -> Run:
    assigner = TaskAlignedAssigner(
        **HYPERPARAMETERS,
        **PRESETS[contenders.PRESET],
        num_classes=setting.classes,
        implementation=implementation,
        compile_kernels=compiled,
    )
    return lambda number: assigner(*sets[number].predictions, *sets[number].truth)


def _loss(setting: Setting, implementation: str, compiled: bool, sets: Sequence[Inputs]) -> Run:
    criterion = criterion_of(setting, implementation, compiled)
    leaves = [[level.detach().requires_grad_() for level in inputs.predictions] for inputs in sets]
    return _stepping(setting, lambda number: criterion(leaves[number], sets[number].batch)[0], leaves)


def _whole(setting: Setting, implementation: str, sets: Sequence[Inputs]) -> Run:
    """Compile all from padded ground truth on; the padding before it has sizes that depend on the data."""
    criterion = criterion_of(setting, implementation)

    def loss(levels: list[Tensor], *truth: Tensor) -> Tensor:
        predictions = join_predictions(levels, STRIDES, setting.classes, REG_MAX)
        return criterion.from_padded(predictions, GroundTruth(*truth)).loss

    compiled: Callable[..., Any] = torch.compile(loss, fullgraph=True, dynamic=False)
    leaves = [[level.detach().requires_grad_() for level in inputs.predictions] for inputs in sets]
    return _stepping(setting, lambda number: compiled(leaves[number], *sets[number].truth), leaves)


def criterion_of(setting: Setting, implementation: str, compiled: bool = False) -> DetectionLoss:
    """Our criterion with M slots given, so that boxes need not be counted."""
    return DetectionLoss(
        setting.classes,
        STRIDES,
        REG_MAX,
        preset=contenders.PRESET,
        implementation=implementation,
        compile_kernels=compiled,
        max_boxes=setting.slots,
        **HYPERPARAMETERS,
    )


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
    criterion = ReferenceLoss(model)
    joined = [as_dict(list(inputs.predictions), setting.classes) for inputs in sets]
    leaves = [[heads[name].contiguous().requires_grad_() for name in ("boxes", "scores")] for heads in joined]
    heads = [
        {"boxes": boxes, "scores": scores, "feats": head["feats"]}
        for (boxes, scores), head in zip(leaves, joined, strict=True)
    ]
    return _stepping(setting, partial(_reference_loss, criterion, heads, sets), leaves)


def _reference_loss(criterion: Any, heads: Sequence[dict[str, Any]], sets: Sequence[Inputs], number: int) -> Tensor:
    loss: Tensor = criterion(heads[number], sets[number].batch)[0]
    return loss


def makers(
    setting: Setting, precision: str, sets: Sequence[Inputs], folders: Sequence[Path], compiling: bool = True
) -> dict[str, Maker]:
    """Functions that make the contenders, by name.

    Args:
        setting: Task and sizes.
        precision: Precision of the inputs.
        sets: Input sets.
        folders: Folders of the exported models.
        compiling: Whether to make those that torch.compile compiles.
    """
    made: dict[str, Maker] = {}
    for name in ways_of(setting.task):
        reason = left_out(setting, precision, name, compiling)
        made[name] = partial(_missing, reason) if reason else partial(ours, setting, name, sets)
    for implementation in ("dense", "sparse"):
        made[f"onnxruntime {implementation}"] = partial(onnx_runtime, setting, precision, implementation, sets, folders)
    for runtime in ("tensorrt", "tensorrt-rtx"):
        made[runtime] = partial(tensorrt, setting, precision, runtime, sets, folders)
    if precision == "fp32":
        made[REFERENCE] = partial(reference, setting, sets)
    return made


def left_out(setting: Setting, precision: str, name: str, compiling: bool) -> str:
    """Reason why one of our contenders is not made, or empty."""
    words = name.split()
    if not compiling and ("compiled" in words or "whole" in words):
        return "left out of a quick run, because compiling takes longer than all the rest"
    # Each size and type compiles for a minute, so only those are made that a goal or a check needs.
    if "whole" in words and (setting.task, precision, setting.slots) != ("loss+grad", "fp32", 30):
        return "compiled only for loss+grad, M = 30, fp32, because each size takes a minute"
    return ""


def _missing(reason: str) -> Run:
    raise MissingError(reason)

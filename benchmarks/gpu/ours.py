"""This project in torch, and the reference, as functions of the number of an input set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import contenders
from benchmarks.contenders import NUMBERS, STRIDES, Setting
from benchmarks.gpu.clock import Run
from benchmarks.gpu.floor import REG_MAX
from benchmarks.gpu.inputs import Inputs
from yolo_loss import PRESETS, DetectionLoss, GroundTruth, TaskAlignedAssigner
from yolo_loss.assignment.triton import available
from yolo_loss.predictions import join_predictions


class MissingError(RuntimeError):
    """A contender cannot take part here; the text says why."""


# Name: formulation, and how it is run.
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
        setting: What is computed.
        name: A formulation, then ``compiled`` for the heavy parts under torch.compile or ``whole`` for all of it, then
            ``graph`` for a CUDA graph of that.
        sets: The inputs.

    Raises:
        MissingError: It needs a GPU.
    """
    formulation, *words = name.split()
    if formulation == "triton":
        _need_triton(sets[0].truth.gt_bboxes.device)
    if "graph" in words and sets[0].truth.gt_bboxes.device.type != "cuda":
        raise MissingError("CUDA graphs need a GPU")
    if "whole" in words:
        run = _whole(setting, formulation, sets)
    elif setting.task == "assigner":
        run = _assigner(setting, formulation, "compiled" in words, sets)
    else:
        run = _loss(setting, formulation, "compiled" in words, sets)
    return captured(run, len(sets)) if "graph" in words else run


def _need_triton(device: torch.device) -> None:
    if not available():
        raise MissingError("the package triton is not installed")
    if device.type != "cuda":
        raise MissingError("Triton's kernels need a GPU")


def _assigner(setting: Setting, formulation: str, compiled: bool, sets: Sequence[Inputs]) -> Run:
    assigner = TaskAlignedAssigner(
        **NUMBERS,
        **PRESETS[contenders.PRESET],
        num_classes=setting.classes,
        implementation=formulation,
        compile_kernels=compiled,
    )
    return lambda number: assigner(*sets[number].predictions, *sets[number].truth)


def _loss(setting: Setting, formulation: str, compiled: bool, sets: Sequence[Inputs]) -> Run:
    criterion = criterion_of(setting, formulation, compiled)
    leaves = [[level.detach().requires_grad_() for level in inputs.predictions] for inputs in sets]
    return _stepping(setting, lambda number: criterion(leaves[number], sets[number].batch)[0], leaves)


def _whole(setting: Setting, formulation: str, sets: Sequence[Inputs]) -> Run:
    """From padded ground truth, because what comes before depends on the data."""
    criterion = criterion_of(setting, formulation)

    def loss(levels: list[Tensor], *truth: Tensor) -> Tensor:
        predictions = join_predictions(levels, STRIDES, setting.classes, REG_MAX)
        return criterion.from_padded(predictions, GroundTruth(*truth)).loss

    compiled: Callable[..., Any] = torch.compile(loss, fullgraph=True, dynamic=False)
    leaves = [[level.detach().requires_grad_() for level in inputs.predictions] for inputs in sets]
    return _stepping(setting, lambda number: compiled(leaves[number], *sets[number].truth), leaves)


def criterion_of(setting: Setting, formulation: str, compiled: bool = False) -> DetectionLoss:
    """Ours, with as many slots as the setting has, so that nobody has to count."""
    return DetectionLoss(
        setting.classes,
        STRIDES,
        REG_MAX,
        preset=contenders.PRESET,
        implementation=formulation,
        compile_kernels=compiled,
        max_boxes=setting.slots,
        **NUMBERS,
    )


def _stepping(setting: Setting, loss: Callable[[int], Tensor], leaves: Sequence[Sequence[Tensor]]) -> Run:
    """Forward alone, or forward and backward, the gradients being what is returned."""
    if setting.task == "loss":
        return torch.no_grad()(loss)

    def step(number: int) -> tuple[Tensor, ...]:
        value = loss(number)
        return value.detach(), *torch.autograd.grad(value.sum(), leaves[number])

    return step


def captured(run: Run, sets: int) -> Run:
    """The same kernels from CUDA graphs, one for each input set, whose addresses are part of it.

    Raises:
        Exception: Whatever CUDA says to a capture of something that waits.
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
    from yolo_assigner.models import (  # reads checkpoints, too, and wants safetensors for them
        DetectionModel,
        DetectorConfig,
    )

    if setting.task == "assigner":
        assigner = ReferenceAssigner(**NUMBERS, num_classes=setting.classes, stride=list(STRIDES))
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

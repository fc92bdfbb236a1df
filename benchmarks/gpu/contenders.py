"""Contenders of the GPU benchmark, as functions of the number of an input set."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import contenders
from benchmarks.common.inputs import Inputs, Setting
from benchmarks.contenders import Run
from benchmarks.gpu.clock import MissingError
from benchmarks.gpu.exported import onnx_runtime

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
        MissingError: It needs a GPU.
        ImportError: It needs a package that is not installed.
        ContractError: Its exported model is missing.
    """
    if name == REFERENCE:
        return contenders.reference(setting, sets)
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
        MissingError: It needs a GPU, or the package triton.
    """
    implementation, *words = name.split()
    device = sets[0].truth.gt_bboxes.device
    if implementation == "triton" and not has_triton(device):
        raise MissingError("Triton's kernels need the package triton and a GPU")
    if "graph" in words and device.type != "cuda":
        raise MissingError("CUDA graphs need a GPU")
    options: dict[str, Any] = {"implementation": implementation, "compile_kernels": "compiled" in words}
    if setting.task != "assigner":
        options["max_boxes"] = setting.slots  # so that boxes need not be counted
    run = contenders.ours(setting, sets, **options)
    return captured(run, len(sets)) if "graph" in words else run


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

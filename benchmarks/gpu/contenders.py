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
from benchmarks.contenders import OUTPUTS, Run, feed_of
from yolo_assigner.export.contract import Contract, ContractError, open_contract
from yolo_assigner.serve.inference.runners.base import Device, RunnerError

REFERENCE = "reference"
# Names: an implementation, and how it is run. Exported models and the reference take float32 alone.
EAGER, COMPILED = ("auto", "triton", "sparse"), ("auto compiled", "auto compiled graph")
GRAPHS, EXPORTED = ("auto graph", "triton graph"), ("onnxruntime dense", "onnxruntime sparse")
OURS = (*EAGER, *GRAPHS, *EXPORTED, *COMPILED)
KIND_OF_TASK = {"assigner": "assigner", "loss": "loss", "loss+grad": "loss_grad"}
ASKED = {**OUTPUTS, "loss+grad": ("loss", "grad_feat_0", "grad_feat_1", "grad_feat_2")}


def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device; on a CPU they do in its interpreter."""
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and importlib.util.find_spec("triton") is not None


def make(setting: Setting, name: str, sets: Sequence[Inputs], models: Path = Path(), **options: Any) -> Run:
    """Make a contender.

    Args:
        setting: Task and sizes.
        name: An implementation, then ``compiled`` where torch.compile takes the heavy parts, then ``graph`` for a CUDA
            graph; ``onnxruntime`` and an implementation; or the reference.
        sets: Input sets.
        models: Folder of the exported models.
        **options: Further options of the assigner or the criterion in torch.

    Raises:
        RunnerError: It needs a GPU, triton, or an onnxruntime with CUDA.
        ImportError: It needs another package that is not installed.
        ContractError: Its exported model is missing.
    """
    if name == REFERENCE:
        return contenders.reference(setting, sets)
    if name in EXPORTED:
        return onnx_runtime(setting, name.split()[1], sets, models)
    implementation, *words = name.split()
    device = sets[0].truth.gt_bboxes.device
    if implementation == "triton" and not has_triton(device):
        raise RunnerError("Triton's kernels need the package triton and a GPU")
    if "graph" in words and device.type != "cuda":
        raise RunnerError("CUDA graphs need a GPU")
    if setting.task != "assigner":
        options["max_boxes"] = setting.slots  # so that boxes need not be counted
    compiled = "compiled" in words
    run = contenders.ours(setting, sets, implementation=implementation, compile_kernels=compiled, **options)
    return captured(run, len(sets)) if "graph" in words else run


def captured(run: Run, sets: int) -> Run:
    """Capture CUDA graphs of a contender, one for each input set, because addresses are part of a graph.

    The current stream must not be the default one.

    Raises:
        Exception: CUDA cannot capture work that waits for the host.
    """
    for turn in range(max(3, sets)):
        run(turn % sets)
    graphs, results = [torch.cuda.CUDAGraph() for _ in range(sets)], []
    pool = torch.cuda.graph_pool_handle()
    for number, graph in enumerate(graphs):
        with torch.cuda.graph(graph, pool=pool):
            results.append(run(number))

    def replay(number: int) -> object:
        graphs[number].replay()
        return results[number]

    return replay


def find_model(models: Path, setting: Setting, implementation: str) -> tuple[Path, Contract]:
    """Open the exported model of a setting, ``IMPLEMENTATION/KIND.onnx`` in a folder.

    Raises:
        ContractError: It is missing, or has another number of classes.
    """
    place = models / implementation / f"{KIND_OF_TASK[setting.task]}.json"
    if not place.exists():
        raise ContractError(f"no {place}; `python -m benchmarks.gpu.pack` makes it, --models names its folder")
    path, contract = open_contract(place)
    classes = contract.hyperparameters["num_classes"]
    if setting.task != "assigner" and classes != setting.classes:
        raise ContractError(f"{path} has {classes} classes, not {setting.classes}")
    return path, contract


def onnx_runtime(setting: Setting, implementation: str, sets: Sequence[Inputs], models: Path) -> Run:
    """A model as the server runs it, with inputs and outputs in the host's memory; a call returns outputs by name."""
    from yolo_assigner.serve.inference.runners.onnx_runtime import OnnxRuntimeRunner

    path, contract = find_model(models, setting, implementation)
    device, asked = sets[0].truth.gt_bboxes.device, ASKED[setting.task]
    runner = OnnxRuntimeRunner(path, asked, Device(device.type, device.index or 0))
    runner.load()
    feeds = [feed_of(contract.inputs, inputs) for inputs in sets]
    return lambda number: runner.infer(feeds[number], asked)

"""Counts how often the host waits for the GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import contenders
from benchmarks.contenders import HYPERPARAMETERS, STRIDES, Setting
from benchmarks.gpu.contenders import criterion_of
from benchmarks.gpu.inputs import make_inputs
from yolo_loss import PRESETS, DetectionLoss, TaskAlignedAssigner
from yolo_loss.predictions import join_predictions
from yolo_loss.triton.launch import available

BATCH_ON_GPU = "batch on the GPU"


def waiting_checks(setting: Setting, device: torch.device) -> list[dict[str, Any]]:
    """Count the waits of each call, and compare them with the allowed number.

    Args:
        setting: Sizes.
        device: A GPU; on a CPU the calls only run.
    """
    found = []
    for what, run in parts(setting, device).items():
        run()  # loading on first use may wait
        if device.type == "cuda":
            waits = count_waits(run)
            found.append({"what": what, "waits": waits, "ok": may_wait(what) is None or waits == may_wait(what)})
        else:
            run()
            found.append({"what": what, "reason": "only a GPU is waited for", "ok": True})
    return found


def may_wait(what: str) -> int | None:
    """Number of times that a call may wait; None for sparse ones, which wait for the lengths of their lists."""
    if "sparse" in what:
        return None
    # The largest number of boxes per image is read back from a batch on the GPU, unless max_boxes is given.
    return 1 if what.endswith(BATCH_ON_GPU) else 0


def count_waits(run: Callable[[], object]) -> int:
    """Number of operations of a call that wait for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in seen)


def parts(setting: Setting, device: torch.device) -> dict[str, Callable[[], object]]:
    """Functions to call, by name."""
    assigner_inputs = make_inputs(setting._replace(task="assigner"), "fp32").on(device)
    on_host = make_inputs(setting._replace(task="loss"), "fp32")
    inputs = on_host.on(device)
    found: dict[str, Callable[[], object]] = {}
    options = {**HYPERPARAMETERS, **PRESETS[contenders.PRESET], "num_classes": setting.classes}
    names = ["auto", "dense", "sparse", *(["triton"] if device.type == "cuda" and available() else [])]
    for name in names:
        assigner = TaskAlignedAssigner(**options, implementation=name)
        criterion = criterion_of(setting, name)
        counting = DetectionLoss(setting.classes, STRIDES, preset=contenders.PRESET, implementation=name)
        leaves = [level.detach().requires_grad_() for level in inputs.predictions]

        def assign(assigner: TaskAlignedAssigner = assigner) -> object:
            return assigner(*assigner_inputs.predictions, *assigner_inputs.truth)

        def step(criterion: DetectionLoss, batch: Any, leaves: list[Any] = leaves) -> object:
            return torch.autograd.grad(criterion(leaves, batch)[0], leaves)

        def without_autograd(criterion: DetectionLoss = criterion) -> object:
            maps = join_predictions(list(inputs.predictions), STRIDES, setting.classes, criterion.reg_max)
            return criterion.gradients_from_padded(maps, inputs.truth)

        def step_from(criterion: DetectionLoss, batch: Any, step: Callable[..., object] = step) -> Callable[[], object]:
            return lambda: step(criterion, batch)

        found[f"assigner, {name}"] = assign
        found[f"loss and backward, {name}, {BATCH_ON_GPU}, max_boxes given"] = step_from(criterion, inputs.batch)
        found[f"loss and backward, {name}, {BATCH_ON_GPU}"] = step_from(counting, inputs.batch)
        found[f"loss and backward, {name}, batch on the CPU"] = step_from(counting, on_host.batch)
        found[f"gradients without autograd, {name}"] = without_autograd
    return found

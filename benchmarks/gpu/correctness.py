"""Compares results with float64 on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.inputs import REG_MAX, STRIDES, Inputs, Setting, make_inputs
from benchmarks.contenders import assigner_of, criterion_of
from benchmarks.gpu.clock import settle
from benchmarks.gpu.contenders import make

Check = dict[str, Any]
# u^6 multiplies the rounding error of an IoU by six; gradients are compared by their norm, and have the maps' type.
SCORES, LOSS, GRADIENT = 1e-4, 1e-5, {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}
# float32 and float64 may rank two metrics differently that are equal to seven digits. One such choice assigns another
# anchor, which makes two differing decisions; these exceed the share where few anchors are foreground.
DECISIONS, FEWEST_DECISIONS = 1e-3, 2
REPEATS = {"cpu": 1, "cuda": 8}


class Case(NamedTuple):
    """Inputs and options that an implementation is compared on.

    Attributes:
        setting: Task and sizes.
        precision: Of class scores or maps.
        options: Further options of assigner or criterion, with their names.
        change: ``ties``, all predictions equal; ``not finite``, some predictions are not a number; ``channels``, class
            scores or maps with another axis innermost; ``factors``, class weights and ignore regions; ``autocast``.
        strides: Pixels per cell of each level.
        reg_max: R.
    """

    setting: Setting
    precision: str = "fp32"
    options: tuple[tuple[str, Any], ...] = ()
    change: str = ""
    strides: tuple[float, ...] = STRIDES
    reg_max: int = REG_MAX


def small(case: Case) -> Case:
    """The same in a size for CPUs."""
    batch, slots, image, classes = map(min, case.setting[1:], (2, 4, 96, 5))
    return case._replace(setting=Setting(case.setting.task, batch, slots, image, classes))


def smoke_checks(name: str, case: Case, implementation: str, device: torch.device) -> list[Check]:
    """Compare an implementation with float64 on the CPU, and an assignment with itself: a race differs at times."""
    inputs = inputs_of(case).on(device)
    if case.change == "channels":
        inputs = inputs._replace(predictions=other_layout(inputs.predictions))
    got = run(case, inputs, implementation)
    found = compare(f"{name}, {implementation}", got, expected(case), GRADIENT[case.precision])
    if case.setting.task == "assigner":
        others = (run(case, inputs, implementation) for _ in range(REPEATS[device.type]))
        differing = sum(any(not torch.equal(other[key], got[key]) for key in got) for other in others)
        found.append(check(f"{name}, {implementation}: runs that differ", differing, 0))
    return found


def contender_checks(
    setting: Setting, precision: str, name: str, device: torch.device, folders: Sequence[Path] = ()
) -> list[Check]:
    """Compare a contender with float64 on the CPU, on an input set that is not its first."""
    case = Case(setting, precision)
    first = inputs_of(case)
    contender = make(setting, name, [first.on(device), first.turned(1).on(device)], folders)
    contender(0)
    result = contender(1)
    settle(device)  # not every runtime waits before it returns results
    what = f"{setting.task} {precision}, {name}"
    return compare(what, by_name(result), expected(case, turned=1), GRADIENT[precision])


def inputs_of(case: Case) -> Inputs:
    """Inputs of a case on the CPU."""
    inputs = make_inputs(case.setting, case.precision, seed=7, strides=case.strides, reg_max=case.reg_max)
    if case.change in ("ties", "not finite"):
        scores, boxes, points = (tensor.clone() for tensor in inputs.predictions)
        if case.change == "ties":
            scores.fill_(0.5)
            boxes.copy_(inputs.truth.gt_bboxes[:, :1].expand_as(boxes))
        else:
            scores[:, 1::5], boxes[:, ::3] = torch.nan, torch.nan
        inputs = inputs._replace(predictions=(scores, boxes, points))
    if case.change == "factors":
        weights = torch.arange(case.setting.batch * case.setting.classes) % 4 / 2  # of which a quarter is 0
        regions = {"ignore_idx": torch.zeros(1), "ignore_bboxes": torch.tensor([[0.4, 0.4, 0.5, 0.6]])}
        batch = {**inputs.batch, "class_weights": weights.view(case.setting.batch, -1), **regions}
        inputs = inputs._replace(batch=batch)
    return inputs


def other_layout(predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Class scores with anchors innermost, or maps with channels innermost."""
    if predictions[0].dim() == 3:
        return predictions[0].mT.contiguous().mT, *predictions[1:]
    return tuple(level.contiguous(memory_format=torch.channels_last) for level in predictions)


@lru_cache(maxsize=2)
def expected(case: Case, turned: int = 0) -> dict[str, Tensor]:
    """Expected results: in float64 on the CPU, by the implementation that is fastest there; gradients by autograd."""
    inputs = inputs_of(case)
    return run(case._replace(change=""), (inputs.turned(turned) if turned else inputs).widened(), "sparse")


def run(case: Case, inputs: Inputs, implementation: str) -> dict[str, Tensor]:
    """Results of an implementation by name."""
    setting, options = case.setting, dict(case.options)
    if setting.task == "assigner":
        assigner = assigner_of(setting, implementation=implementation, **options)
        return by_name(assigner(*inputs.predictions, *inputs.truth))
    options |= {"reg_max": case.reg_max, "max_boxes": setting.slots, "implementation": implementation}
    criterion = criterion_of(setting, case.strides, **options)
    leaves = [level.detach().requires_grad_() for level in inputs.predictions]
    half = torch.bfloat16 if leaves[0].device.type == "cpu" else torch.float16
    with torch.autocast(leaves[0].device.type, half, enabled=case.change == "autocast"):
        loss, _ = criterion(leaves, inputs.batch)
    return by_name((loss.detach(), *torch.autograd.grad(loss, leaves)))


def by_name(result: Any) -> dict[str, Tensor]:
    """Convert a loss, a loss with its gradients, an assignment, or outputs by name to float64 on the CPU."""
    if isinstance(result, Tensor):
        return {"loss": widened(result)}
    if isinstance(result, Mapping) or hasattr(result, "_asdict"):
        named = {name: widened(value) for name, value in (getattr(result, "_asdict", lambda: result)()).items()}
        gradients = [named.pop(name) for name in sorted(named) if name.startswith("grad_")]
        return {**named, "gradient": joined(gradients)} if gradients else named
    loss, *gradients = (widened(value) for value in result)
    return {"loss": loss, "gradient": joined(gradients)}


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate the gradients of all maps to one vector."""
    return torch.cat([level.flatten() for level in maps])


def widened(value: Any) -> Tensor:
    """Copy a tensor, an array or a value of ONNX Runtime to the CPU, and convert floats to float64."""
    if not isinstance(value, Tensor):
        value = torch.from_numpy(np.array(value.numpy() if hasattr(value, "numpy") else value))
    tensor: Tensor = value.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def compare(
    what: str, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], gradient_limit: float = GRADIENT["fp32"]
) -> list[Check]:
    """Compare the loss and its gradient, or the decisions and the scores of an assignment."""
    if "loss" in wanted:
        loss, want = float(got["loss"]), float(wanted["loss"])
        found = [check(f"{what}: loss, relative", abs(loss - want) / max(abs(want), 1.0), LOSS)]
        if "gradient" in got:
            difference = (got["gradient"] - wanted["gradient"]).norm() / wanted["gradient"].norm()
            found.append(check(f"{what}: gradient", float(difference), gradient_limit))
        return found
    mask, target = got["fg_mask"].bool(), wanted["fg_mask"]
    same = (mask == target) & (got["target_labels"] == wanted["target_labels"])
    positives = max(int(target.sum()), 1)
    scores = (got["target_scores"] - wanted["target_scores"])[same].abs()
    most = max(DECISIONS, FEWEST_DECISIONS / positives)
    return [
        check(f"{what}: decisions that differ, of all positive", float((~same).sum()) / positives, most),
        check(f"{what}: scores where they agree", float(scores.max()) if scores.numel() else 0.0, SCORES),
    ]


def check(what: str, figure: float, limit: float) -> Check:
    """A comparison; NaN is never within the limit."""
    return {"what": what, "figure": figure, "limit": limit, "ok": bool(figure <= limit)}

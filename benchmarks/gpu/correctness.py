"""Whether what is measured is right: every contender beside float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import STRIDES, Setting
from benchmarks.gpu.clock import settle
from benchmarks.gpu.goals import REFERENCE
from benchmarks.gpu.inputs import Inputs, make_inputs, turned
from benchmarks.gpu.ours import MissingError, criterion_of, ours
from benchmarks.gpu.progress import Progress
from benchmarks.gpu.text import first_line
from benchmarks.gpu.times import Maker, makers
from yolo_assigner.export.contract import ContractError
from yolo_loss.predictions import join_predictions

Check = dict[str, Any]
# u^6 multiplies the rounding of an overlap by six; gradients are measured by their norm.
SCORES, LOSS = 1e-4, 1e-5
# Gradients have the maps' own type.
GRADIENT = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}
# float32 and float64 may choose differently between two metrics that are equal to seven digits. One such choice gives a
# positive to another anchor, which makes two decisions that differ; of few positives they are more than the share.
DECISIONS, FEWEST_DECISIONS = 1e-3, 2


def contender_checks(
    setting: Setting,
    precision: str,
    device: torch.device,
    folders: Sequence[Path],
    say: Callable[[str], None] = lambda _: None,
    compiling: bool = True,
    progress: Progress | None = None,
) -> list[Check]:
    """Each contender's results beside those of the same inputs in float64 on the CPU, with a set that was not first.

    Args:
        setting: What is computed.
        precision: Of the inputs.
        device: Where the contenders run.
        folders: Of the exported models.
        say: Told of each contender.
        compiling: Take those that are compiled, too.
        progress: Keeps what each gave.

    Returns:
        Checks with the names of ``task``, ``precision`` and ``contender`` besides.
    """
    progress = progress or Progress()
    first = make_inputs(setting, precision, seed=7)
    sets = [first, turned(first, 1)]
    wanted = wanted_of(setting, sets[1].widened())
    there = [inputs.on(device) for inputs in sets]
    made = makers(setting, precision, there, folders, compiling)
    found: list[Check] = []
    for name in progress.order(name for name in made if name != REFERENCE):
        what = f"{setting.task} {precision}, {name}"
        say(what)

        def run(make: Maker = made[name], what: str = what) -> list[Check]:
            def got() -> dict[str, Tensor]:
                contender = make()
                contender(0)
                result = contender(1)
                settle(device)  # not every runtime waits before it hands over what it computed
                return by_name(setting, result)

            return compared(what, got, wanted, device, GRADIENT[precision])

        about = {"task": setting.task, "precision": precision, "contender": name}
        found += [{**about, **check} for check in kept_checks(progress, name, what, run)]
    return found


def kept_checks(progress: Progress, name: str, what: str, run: Callable[[], list[Check]]) -> list[Check]:
    """Of one contender, unless it is left out."""
    if reason := progress.left_out(name):
        return [{"what": what, "reason": reason, "ok": True}]
    checks: list[Check] = progress.entry(name, run)
    return checks


def compared(
    what: str,
    got: Callable[[], Mapping[str, Tensor]],
    wanted: Mapping[str, Tensor],
    device: torch.device,
    gradient_limit: float = GRADIENT["fp32"],
) -> list[Check]:
    """The comparison, or why there is none. An error of the device itself is raised again."""
    try:
        return compare(what, got(), wanted, gradient_limit)
    except (MissingError, ContractError) as error:
        return [{"what": what, "reason": str(error), "ok": True}]
    except Exception as error:
        settle(device)
        return [{"what": what, "reason": f"{type(error).__name__}: {first_line(error)}", "ok": False}]


def wanted_of(setting: Setting, inputs: Inputs) -> dict[str, Tensor]:
    """In float64 on the CPU by the dense formulation, gradients by autograd."""
    if setting.task == "assigner":
        return by_name(setting, ours(setting, "dense", [inputs])(0))
    leaves = [level.detach().requires_grad_() for level in inputs.predictions]
    joined = join_predictions(leaves, STRIDES, setting.classes, 16)
    loss = criterion_of(setting, "dense").from_padded(joined, inputs.truth).loss
    wanted = {"loss": loss.detach()}
    if setting.task == "loss+grad":
        wanted["gradient"] = joined_maps(torch.autograd.grad(loss, leaves))
    return wanted


def by_name(setting: Setting, result: Any) -> dict[str, Tensor]:
    """A contender's result as float64 on the CPU, whatever form it has."""
    if isinstance(result, Mapping):
        named = {name: widened(value) for name, value in result.items()}
        gradients = [named.pop(name) for name in sorted(named) if name.startswith("grad_")]
        if gradients:
            named["gradient"] = joined_maps(gradients)
        return named
    if setting.task == "assigner":
        return {name: widened(value) for name, value in result._asdict().items()}
    if setting.task == "loss":
        return {"loss": widened(result)}
    loss, *gradients = (widened(value) for value in result)
    return {"loss": loss, "gradient": joined_maps(gradients)}


def joined_maps(maps: Sequence[Tensor]) -> Tensor:
    """Gradients by all maps as one vector."""
    return torch.cat([level.flatten() for level in maps])


def widened(value: Any) -> Tensor:
    """Floats as float64, on the CPU."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value.numpy()))
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def compare(
    what: str, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], gradient_limit: float = GRADIENT["fp32"]
) -> list[Check]:
    """Differences of what both have."""
    if "loss" in wanted:
        loss, want = float(got["loss"]), float(wanted["loss"])
        found = [check(f"{what}: loss, relative", abs(loss - want) / max(abs(want), 1.0), LOSS)]
        if "gradient" in wanted:
            gradient, target = got["gradient"], wanted["gradient"]
            found.append(check(f"{what}: gradient", float((gradient - target).norm() / target.norm()), gradient_limit))
        return found
    mask, target = got["fg_mask"].bool(), wanted["fg_mask"]
    same = (mask == target) & (got["target_labels"] == wanted["target_labels"])
    positives = max(int(target.sum()), 1)
    differing = float((~same).sum()) / positives
    scores = (got["target_scores"] - wanted["target_scores"])[same].abs()
    return [
        check(
            f"{what}: decisions that differ, of all positive", differing, max(DECISIONS, FEWEST_DECISIONS / positives)
        ),
        check(f"{what}: scores where they agree", float(scores.max()) if scores.numel() else 0.0, SCORES),
    ]


def check(what: str, figure: float, limit: float) -> Check:
    """Not a number is never right."""
    return {"what": what, "figure": figure, "limit": limit, "ok": bool(figure <= limit)}

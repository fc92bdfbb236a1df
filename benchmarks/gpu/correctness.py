"""Whether what is measured is right: beside float64 on the CPU, the oracle in plain loops, and on the sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import NUMBERS, STRIDES, Setting
from benchmarks.gpu.clock import settle
from benchmarks.gpu.goals import REFERENCE
from benchmarks.gpu.inputs import Inputs, make_inputs, turned
from benchmarks.gpu.ours import MissingError, criterion_of, ours
from benchmarks.gpu.times import first_line, makers
from examples.dataset import load_sample
from export.contract import ContractError
from export.samples import Case, pyramid, sample_assigner_inputs
from tests import oracle
from yolo_loss import DetectionLoss, TaskAlignedAssigner
from yolo_loss.predictions import join_predictions

Check = dict[str, Any]
# u^6 multiplies the rounding of an overlap by six; gradients are measured by their norm.
SCORES, LOSS = 1e-4, 1e-5
# Gradients have the maps' own type.
GRADIENT = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}
# float32 and float64 may choose differently between two metrics that are equal to seven digits.
DECISIONS = 1e-3


def checks(
    settings: Sequence[Setting],
    device: torch.device,
    folders: Sequence[Path],
    say: Callable[[str], None] = lambda _: None,
    compiling: bool = True,
) -> list[Check]:
    """All comparisons.

    Args:
        settings: With which every contender is compared, in both precisions of the inputs.
        device: Where the contenders run.
        folders: Of the exported models.
        say: Told of each comparison.
        compiling: Take those that are compiled, too.
    """
    found = [*oracle_checks(device), *sample_checks(device)]
    for setting in settings:
        for precision in ("fp32", "fp16"):
            found += contender_checks(setting, precision, device, folders, say, compiling)
    return found


def contender_checks(
    setting: Setting,
    precision: str,
    device: torch.device,
    folders: Sequence[Path],
    say: Callable[[str], None],
    compiling: bool,
) -> list[Check]:
    """Each contender's results beside those of the same inputs in float64 on the CPU, with a set that was not first."""
    first = make_inputs(setting, precision, seed=7)
    sets = [first, turned(first, 1)]
    wanted = wanted_of(setting, sets[1].widened())
    there = [inputs.on(device) for inputs in sets]
    found: list[Check] = []
    for name, make in makers(setting, precision, there, folders, compiling).items():
        if name == REFERENCE:
            continue
        what = f"{setting.task} {precision}, {name}"
        say(what)
        try:
            run = make()
            run(0)
            got = by_name(setting, run(1))
            settle(device)
            found += compare(what, got, wanted, GRADIENT[precision])
        except (MissingError, ContractError) as error:
            found.append({"what": what, "reason": str(error), "ok": True})
        except Exception as error:
            settle(device)
            found.append({"what": what, "reason": f"{type(error).__name__}: {first_line(error)}", "ok": False})
    return found


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
        named = {name: _tensor(value) for name, value in result.items()}
        gradients = [named.pop(name) for name in sorted(named) if name.startswith("grad_")]
        if gradients:
            named["gradient"] = joined_maps(gradients)
        return named
    if setting.task == "assigner":
        return {name: _tensor(value) for name, value in result._asdict().items()}
    if setting.task == "loss":
        return {"loss": _tensor(result)}
    loss, *gradients = (_tensor(value) for value in result)
    return {"loss": loss, "gradient": joined_maps(gradients)}


def joined_maps(maps: Sequence[Tensor]) -> Tensor:
    """Gradients by all maps as one vector."""
    return torch.cat([level.flatten() for level in maps])


def _tensor(value: Any) -> Tensor:
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
    differing = float((~same).sum()) / max(int(target.sum()), 1)
    scores = (got["target_scores"] - wanted["target_scores"])[same].abs()
    return [
        check(f"{what}: decisions that differ, of all positive", differing, DECISIONS),
        check(f"{what}: scores where they agree", float(scores.max()) if scores.numel() else 0.0, SCORES),
    ]


def check(what: str, figure: float, limit: float) -> Check:
    """Not a number is never right."""
    return {"what": what, "figure": figure, "limit": limit, "ok": bool(figure <= limit)}


def oracle_checks(device: torch.device) -> list[Check]:
    """Small cases beside plain loops in float64."""
    found = []
    for seed, case in enumerate((Case(2, 5, pyramid(64, 96, STRIDES), 3), Case(1, 1, pyramid(64, 64, STRIDES), 1))):
        inputs = sample_assigner_inputs(case, STRIDES, seed)
        want = oracle.assign(*(tensor.double().numpy() for tensor in inputs), **NUMBERS)
        wanted = {name: torch.from_numpy(np.array(value)) for name, value in want._asdict().items()}
        for formulation in ("auto", "dense", "sparse"):
            assigner = TaskAlignedAssigner(**NUMBERS, num_classes=case.num_classes, formulation=formulation)
            got = assigner(*(tensor.to(device) for tensor in inputs))
            named = {name: _tensor(value) for name, value in got._asdict().items()}
            found += compare(f"oracle, {case.batch} x {case.slots}, {formulation}", named, wanted)
    return found


def sample_checks(device: torch.device) -> list[Check]:
    """The committed sample, from the ragged batch on."""
    sample = load_sample()
    feats = [torch.from_numpy(level) for level in sample.feats]
    batch = {name: torch.from_numpy(values) for name, values in sample.batch.items()}

    def step(formulation: str, where: torch.device, dtype: torch.dtype, batch_there: bool) -> dict[str, Tensor]:
        criterion = DetectionLoss(1, STRIDES, formulation=formulation)
        leaves = [feat.to(where, dtype).requires_grad_() for feat in feats]
        placed = {name: values.to(where) if batch_there else values for name, values in batch.items()}
        loss, _ = criterion(leaves, placed)
        gradients = [_tensor(part) for part in torch.autograd.grad(loss, leaves)]
        return {"loss": _tensor(loss), "gradient": joined_maps(gradients)}

    wanted = step("dense", torch.device("cpu"), torch.float64, batch_there=True)
    found = []
    for formulation in ("auto", "dense", "sparse"):
        for there in (False, True):
            run = partial(step, formulation, device, torch.float32, there)
            found += compare(f"sample, {formulation}, batch on the {'device' if there else 'CPU'}", run(), wanted)
    return found

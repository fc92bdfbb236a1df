"""Compares results with float64 on the CPU, with the oracle in plain loops, and on the committed sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.report import first_line
from benchmarks.contenders import HYPERPARAMETERS, STRIDES, Setting
from benchmarks.gpu.clock import MissingError, settle
from benchmarks.gpu.contenders import REFERENCE, Maker, criterion_of, makers, ours
from benchmarks.gpu.inputs import Inputs, make_inputs, turned
from benchmarks.gpu.store import Progress
from examples.dataset import load_sample
from tests import oracle
from yolo_assigner.export.contract import ContractError
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import DetectionLoss, TaskAlignedAssigner
from yolo_loss.predictions import join_predictions
from yolo_loss.triton.launch import available

Check = dict[str, Any]
# u^6 multiplies the rounding error of an IoU by six; gradients are compared by their norm.
SCORES, LOSS = 1e-4, 1e-5
# Gradients have the type of the maps.
GRADIENT = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}
# float32 and float64 may rank two metrics differently that are equal to seven digits. One such choice assigns another
# anchor, which makes two differing decisions; these exceed the share where few anchors are foreground.
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
    """Compare each contender with float64 on the CPU, on an input set that is not its first.

    Args:
        setting: Task and sizes.
        precision: Precision of the inputs.
        device: Device of the contenders.
        folders: Folders of the exported models.
        say: Receives the name of each contender.
        compiling: Whether to take the compiled contenders too.
        progress: Decides which contenders run, and records their checks.

    Returns:
        Checks with ``task``, ``precision`` and ``contender``.
    """
    progress = progress or Progress()
    first = make_inputs(setting, precision, seed=7)
    sets = [first, turned(first, 1)]
    expected = expected_of(setting, sets[1].widened())
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
                settle(device)  # not every runtime waits before it returns results
                return by_name(setting, result)

            return compared(what, got, expected, device, GRADIENT[precision])

        about = {"task": setting.task, "precision": precision, "contender": name}
        found += [{**about, **check} for check in kept_checks(progress, name, what, run)]
    return found


def kept_checks(progress: Progress, name: str, what: str, run: Callable[[], list[Check]]) -> list[Check]:
    """Checks of one contender, or the reason why it is left out."""
    if reason := progress.left_out(name):
        return [{"what": what, "reason": reason, "ok": True}]
    checks: list[Check] = progress.entry(name, run)
    return checks


def compared(
    what: str,
    got: Callable[[], Mapping[str, Tensor]],
    expected: Mapping[str, Tensor],
    device: torch.device,
    gradient_limit: float = GRADIENT["fp32"],
) -> list[Check]:
    """Compare, or give the reason why it is impossible. An error of the device itself is raised again."""
    try:
        return compare(what, got(), expected, gradient_limit)
    except (MissingError, ContractError) as error:
        return [{"what": what, "reason": str(error), "ok": True}]
    except Exception as error:
        settle(device)
        return [{"what": what, "reason": f"{type(error).__name__}: {first_line(error)}", "ok": False}]


def expected_of(setting: Setting, inputs: Inputs) -> dict[str, Tensor]:
    """Expected results: dense in float64 on the CPU, gradients by autograd."""
    if setting.task == "assigner":
        return by_name(setting, ours(setting, "dense", [inputs])(0))
    leaves = [level.detach().requires_grad_() for level in inputs.predictions]
    joined = join_predictions(leaves, STRIDES, setting.classes, 16)
    loss = criterion_of(setting, "dense").from_padded(joined, inputs.truth).loss
    expected = {"loss": loss.detach()}
    if setting.task == "loss+grad":
        expected["gradient"] = joined_maps(torch.autograd.grad(loss, leaves))
    return expected


def by_name(setting: Setting, result: Any) -> dict[str, Tensor]:
    """Convert a contender's result to tensors by name, in float64 on the CPU."""
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
    """Concatenate the gradients of all maps to one vector."""
    return torch.cat([level.flatten() for level in maps])


def widened(value: Any) -> Tensor:
    """Copy to the CPU, and convert floats to float64."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value.numpy()))
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def compare(
    what: str, got: Mapping[str, Tensor], expected: Mapping[str, Tensor], gradient_limit: float = GRADIENT["fp32"]
) -> list[Check]:
    """Compare the loss and its gradient, or the decisions and the scores of an assignment."""
    if "loss" in expected:
        loss, want = float(got["loss"]), float(expected["loss"])
        found = [check(f"{what}: loss, relative", abs(loss - want) / max(abs(want), 1.0), LOSS)]
        if "gradient" in expected:
            gradient, target = got["gradient"], expected["gradient"]
            found.append(check(f"{what}: gradient", float((gradient - target).norm() / target.norm()), gradient_limit))
        return found
    mask, target = got["fg_mask"].bool(), expected["fg_mask"]
    same = (mask == target) & (got["target_labels"] == expected["target_labels"])
    positives = max(int(target.sum()), 1)
    differing = float((~same).sum()) / positives
    scores = (got["target_scores"] - expected["target_scores"])[same].abs()
    return [
        check(
            f"{what}: decisions that differ, of all positive", differing, max(DECISIONS, FEWEST_DECISIONS / positives)
        ),
        check(f"{what}: scores where they agree", float(scores.max()) if scores.numel() else 0.0, SCORES),
    ]


def check(what: str, figure: float, limit: float) -> Check:
    """A comparison; NaN is never within the limit."""
    return {"what": what, "figure": figure, "limit": limit, "ok": bool(figure <= limit)}


CASES = (Case(2, 5, pyramid(64, 96, STRIDES), 3), Case(1, 1, pyramid(64, 64, STRIDES), 1))


def implementations(device: torch.device) -> tuple[str, ...]:
    """Implementations that run on a device."""
    return "auto", "dense", "sparse", *(("triton",) if device.type == "cuda" and available() else ())


def oracle_checks(device: torch.device, progress: Progress | None = None) -> list[Check]:
    """Compare small cases with the oracle in float64.

    Args:
        device: Device of the assigner.
        progress: Decides which implementations run, and records their checks.
    """
    return _each(device, progress or Progress(), "oracle", partial(_oracle, device))


def sample_checks(device: torch.device, progress: Progress | None = None) -> list[Check]:
    """Compare loss and gradients of the committed sample, from the ragged batch on.

    Args:
        device: Device of the criterion.
        progress: Decides which implementations run, and records their checks.
    """
    expected = _step("dense", torch.device("cpu"), torch.float64, batch_there=True)
    return _each(device, progress or Progress(), "sample", partial(_sample, device, expected))


def _each(device: torch.device, progress: Progress, what: str, check: Callable[[str], list[Check]]) -> list[Check]:
    found: list[Check] = []
    for name in progress.order(implementations(device)):
        found += kept_checks(progress, name, f"{what}, {name}", partial(check, name))
    return found


def _oracle(device: torch.device, implementation: str) -> list[Check]:
    found: list[Check] = []
    for seed, case in enumerate(CASES):
        inputs = sample_assigner_inputs(case, STRIDES, seed)
        want = oracle.assign(*(tensor.double().numpy() for tensor in inputs), **HYPERPARAMETERS)
        expected = {name: torch.from_numpy(np.array(value)) for name, value in want._asdict().items()}
        assigner = TaskAlignedAssigner(**HYPERPARAMETERS, num_classes=case.num_classes, implementation=implementation)

        def got(
            assigner: TaskAlignedAssigner = assigner, inputs: tuple[Tensor, ...] = tuple(inputs)
        ) -> dict[str, Tensor]:
            result = assigner(*(tensor.to(device) for tensor in inputs))
            return {name: widened(value) for name, value in result._asdict().items()}

        found += compared(f"oracle, {case.batch} x {case.slots}, {implementation}", got, expected, device)
    return found


def _sample(device: torch.device, expected: dict[str, Tensor], implementation: str) -> list[Check]:
    found: list[Check] = []
    for there in (False, True):
        run = partial(_step, implementation, device, torch.float32, there)
        where = "device" if there else "CPU"
        found += compared(f"sample, {implementation}, batch on the {where}", run, expected, device)
    return found


def _step(implementation: str, where: torch.device, dtype: torch.dtype, batch_there: bool) -> dict[str, Tensor]:
    sample = load_sample()
    batch = {name: torch.from_numpy(values) for name, values in sample.batch.items()}
    criterion = DetectionLoss(1, STRIDES, implementation=implementation)
    leaves = [torch.from_numpy(level).to(where, dtype).requires_grad_() for level in sample.feats]
    loss, _ = criterion(leaves, {name: values.to(where) if batch_there else values for name, values in batch.items()})
    gradients = torch.autograd.grad(loss, leaves)
    settle(where)
    return {"loss": widened(loss), "gradient": joined_maps([widened(part) for part in gradients])}

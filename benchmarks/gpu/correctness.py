"""Compares results with float64 on the CPU, also in cases where kernels have a path of their own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import contenders
from benchmarks.common.inputs import REG_MAX, STRIDES, Inputs, Setting, make_inputs
from benchmarks.gpu.contenders import make
from benchmarks.gpu.results import Entry

Check = dict[str, Any]
# u^6 multiplies the rounding error of an IoU by six; gradients are compared by their norm, and have the maps' type.
SCORES, LOSS, GRADIENT = 1e-4, 1e-5, {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}
# float32 and float64 may rank two metrics differently that are equal to seven digits. One such choice assigns another
# anchor, which makes two differing decisions; these exceed the share where few anchors are foreground.
DECISIONS, FEWEST_DECISIONS = 1e-3, 2
REPEATS = {"cpu": 1, "cuda": 8}
SEED, OTHER_SEED = 7, 8


class Case(NamedTuple):
    """Inputs and options that a contender is compared on.

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

    @property
    def all_options(self) -> dict[str, Any]:
        """Options of the contender, those of the pyramid included."""
        found = {**dict(self.options), "autocast": self.change == "autocast"}
        return found if self.setting.task == "assigner" else {**found, "strides": self.strides, "reg_max": self.reg_max}

    def small(self) -> Case:
        """The same in a size for CPUs."""
        return self._replace(setting=Setting(self.setting.task, *map(min, self.setting[1:], (2, 4, 96, 3))))


FEW, GRAD = Setting("assigner", 4, 30, classes=3), Setting("loss+grad", 4, 30)
FINE, COARSE = (4.0, 8.0, 16.0, 32.0), (8.0, 16.0, 32.0, 64.0)
CASES: Mapping[str, Case] = MappingProxyType(
    {
        "16 x 100": Case(Setting("assigner", 16, 100)),
        "16 x 300": Case(Setting("assigner", 16, 300)),
        "bfloat16": Case(FEW, "bf16"),
        "anchors innermost": Case(FEW, change="channels"),
        "one slot, one class": Case(Setting("assigner", 1, 1, classes=1)),
        "an odd number of anchors": Case(FEW._replace(image=96)),
        "more candidates than anchors": Case(FEW._replace(image=32), options=(("topk", 60),)),
        "1 candidate": Case(FEW, options=(("topk", 1),)),
        "64 candidates": Case(FEW, options=(("topk", 64),)),
        "one to one": Case(FEW, options=(("topk", 7), ("topk2", 1))),
        "exponents 1 and 4.5": Case(FEW, options=(("alpha", 1.0), ("beta", 4.5))),
        "ties": Case(FEW, change="ties"),
        "not finite": Case(FEW, change="not finite"),
        "four levels": Case(FEW._replace(image=320), strides=FINE),
        "loss, channels_last": Case(GRAD, change="channels"),
        "loss, bfloat16": Case(GRAD, "bf16"),
        "loss, autocast": Case(GRAD, change="autocast"),
        "loss, varifocal": Case(GRAD, options=(("class_loss", "varifocal"),)),
        "loss, class weights and regions": Case(GRAD, change="factors"),
        "loss, plain distances": Case(GRAD, reg_max=1),
        "loss, four levels from 4": Case(GRAD._replace(image=320), strides=FINE),
        "loss, four levels to 64": Case(GRAD, strides=COARSE),
        "loss, no ground truth": Case(GRAD._replace(slots=0)),
    }
)


def usual(precision: str) -> dict[str, Case]:
    """Cases that every contender is compared on."""
    return {f"{setting.task} {precision}": Case(setting, precision) for setting in (FEW._replace(classes=80), GRAD)}


def checks(case: Case, name: str, device: torch.device, models: Path = Path()) -> Entry:
    """Comparisons of a contender with float64 on the CPU, on an input set that is not its first.

    An assignment is also compared with itself: a race differs at times.
    """
    sets = [inputs_of(case, seed).on(device) for seed in (OTHER_SEED, SEED)]
    run = make(case.setting, name, sets, models, **case.all_options)
    run(0)
    got = by_name(run(1))
    found = compare(got, expected(case), GRADIENT[case.precision])
    if case.setting.task == "assigner":
        others = (by_name(run(1)) for _ in range(REPEATS[device.type]))
        differing = sum(any(not torch.equal(other[key], got[key]) for key in got) for other in others)
        found.append(check("runs that differ", differing, 0))
    return {"checks": found}


def inputs_of(case: Case, seed: int = SEED) -> Inputs:
    """Inputs of a case on the CPU; copies on a device keep their layout."""
    inputs = make_inputs(case.setting, case.precision, seed, case.strides, case.reg_max)
    first, *rest = inputs.predictions
    if case.change == "ties":
        first, rest[0] = torch.full_like(first, 0.5), inputs.truth.gt_bboxes[:, :1].expand_as(rest[0]).clone()
    elif case.change == "not finite":
        anchors = torch.arange(first.shape[1])[:, None]
        first, rest[0] = first.where(anchors % 5 != 1, torch.nan), rest[0].where(anchors % 3 != 0, torch.nan)
    elif case.change == "channels" and case.setting.task == "assigner":
        first = first.mT.contiguous().mT
    elif case.change == "channels":
        first, *rest = (level.contiguous(memory_format=torch.channels_last) for level in inputs.predictions)
    elif case.change == "factors":
        weights = torch.arange(case.setting.batch * case.setting.classes) % 4 / 2  # of which a quarter is 0
        regions = {"ignore_idx": torch.zeros(1), "ignore_bboxes": torch.tensor([[0.4, 0.4, 0.5, 0.6]])}
        batch = {**inputs.batch, "class_weights": weights.view(case.setting.batch, -1), **regions}
        inputs = inputs._replace(batch=batch)
    return inputs._replace(predictions=(first, *rest))


@lru_cache(maxsize=2)
def expected(case: Case) -> dict[str, Tensor]:
    """Expected results: in float64 on the CPU, by the implementation that is fastest there; gradients by autograd."""
    options = {**case.all_options, "autocast": False, "implementation": "sparse"}
    return by_name(contenders.ours(case.setting, [inputs_of(case).widened()], **options)(0))


def by_name(result: Any) -> dict[str, Tensor]:
    """Convert a loss, a loss with its gradients, an assignment, or outputs by name to float64 on the CPU."""
    if not hasattr(result, "_asdict") and not isinstance(result, Mapping):
        loss, *maps = (result,) if isinstance(result, Tensor) else result
        result = {"loss": loss, **{f"grad_{level}": gradient for level, gradient in enumerate(maps)}}
    named = result if isinstance(result, Mapping) else result._asdict()
    found = {}
    for name, value in named.items():
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        found[name] = tensor.double() if tensor.is_floating_point() else tensor
    gradients = [found.pop(name).flatten() for name in sorted(found) if name.startswith("grad_")]
    return {**found, "gradient": torch.cat(gradients)} if gradients else found


def compare(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], gradient: float = GRADIENT["fp32"]) -> list[Check]:
    """Compare the loss and its gradient, which has a limit of its own, or decisions and scores of an assignment."""
    if "loss" in wanted:
        loss, want = float(got["loss"]), float(wanted["loss"])
        found = [check("loss, relative", abs(loss - want) / max(abs(want), 1.0), LOSS)]
        if "gradient" in wanted:
            difference = (got["gradient"] - wanted["gradient"]).norm() / wanted["gradient"].norm()
            found.append(check("gradient", float(difference), gradient))
        return found
    mask, target = got["fg_mask"].bool(), wanted["fg_mask"]
    same = (mask == target) & (got["target_labels"] == wanted["target_labels"])
    positives = max(int(target.sum()), 1)
    scores = (got["target_scores"] - wanted["target_scores"])[same].abs()
    most = max(DECISIONS, FEWEST_DECISIONS / positives)
    return [
        check("decisions that differ, of all positive", float((~same).sum()) / positives, most),
        check("scores where they agree", float(scores.max()) if scores.numel() else 0.0, SCORES),
    ]


def check(what: str, figure: float, limit: float) -> Check:
    """A comparison; NaN is never within the limit."""
    return {"what": what, "figure": figure, "limit": limit, "ok": bool(figure <= limit)}

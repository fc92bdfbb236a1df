"""The parts of the benchmark in their order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.contenders import TASKS, Setting
from benchmarks.gpu.clock import QUICK, Effort, copy_speed
from benchmarks.gpu.correctness import contender_checks
from benchmarks.gpu.environment import describe
from benchmarks.gpu.known_cases import oracle_checks, sample_checks
from benchmarks.gpu.progress import Kept
from benchmarks.gpu.store import Store
from benchmarks.gpu.times import times_row
from benchmarks.gpu.waiting import waiting_checks

SIZES = ((16, 30), (16, 100), (16, 300), (64, 100))
PRECISIONS = ("fp32", "fp16")
# In float32: what the goals are about is measured first.
GOAL_ROWS = (("assigner", 16, 100), ("loss+grad", 16, 30), ("assigner", 16, 300), ("loss+grad", 16, 300))
CORRECT, TIMES = "correct ", "times "
Part = Callable[[], Any]


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        device: Where.
        quick: Small and few, to see that all of it works.
        folders: Of the exported models.
        without: Contenders that are left out.
    """

    device: torch.device
    quick: bool
    folders: tuple[Path, ...]
    without: tuple[str, ...] = ()

    @property
    def settings(self) -> list[Setting]:
        """In which times are taken."""
        if self.quick:
            return [Setting(task, 2, 3, image=64, classes=3) for task in TASKS]
        return [Setting(task, *size) for size in SIZES for task in TASKS]

    @property
    def goal_settings(self) -> list[Setting]:
        """Those of them that the goals are about; of a quick run the first."""
        return self.settings[:1] if self.quick else [Setting(*row) for row in GOAL_ROWS]

    @property
    def checked(self) -> list[Setting]:
        """In which every contender is compared with float64. Engines are built for 640 pixels alone."""
        if self.quick:
            return [self.settings[0], self.settings[-1]]
        return [Setting(task, 4, 30) for task in ("assigner", "loss+grad")]


def times_name(setting: Setting, precision: str) -> str:
    """Of a part."""
    return f"{TIMES}{setting.task} {setting.batch} x {setting.slots} {precision}"


def make_parts(plan: Plan, store: Store, say: Callable[[str], None]) -> dict[str, Part]:
    """A function for each part by its name, in their order."""
    device = plan.device
    largest = max(plan.settings, key=lambda setting: setting.slots if setting.batch <= 16 else 0)
    found: dict[str, Part] = {"environment": partial(describe, device)}
    for name, known in (("oracle", oracle_checks), ("sample", sample_checks)):
        found[CORRECT + name] = partial(known, device, Kept(store, CORRECT + name, plan.without))
    found["bandwidth"] = partial(bandwidth, device, plan.quick)
    for setting in plan.goal_settings:
        found[times_name(setting, "fp32")] = _times(plan, store, setting, "fp32", say)
    for precision in PRECISIONS:
        for setting in plan.checked:
            name = f"{CORRECT}{setting.task} {precision}"
            found[name] = partial(
                contender_checks,
                *(setting, precision, device, plan.folders, say, not plan.quick),
                Kept(store, name, plan.without),
            )
    found["waiting"] = partial(waiting_checks, largest, device)
    for precision in PRECISIONS:
        for setting in plan.settings:
            # One that is there keeps its place.
            found.setdefault(times_name(setting, precision), _times(plan, store, setting, precision, say))
    return found


def bandwidth(device: torch.device, quick: bool) -> dict[str, float]:
    """What a copy moves, in a size that no cache holds."""
    speed = copy_speed(device, 2**22 if quick else 2**30, 3 if quick else 21)
    return {"copy, read and written, GB/s": round(speed / 1e9, 1)}


def _times(plan: Plan, store: Store, setting: Setting, precision: str, say: Callable[[str], None]) -> Part:
    kept = Kept(store, times_name(setting, precision), plan.without)
    effort = QUICK if plan.quick else Effort()
    return partial(times_row, setting, precision, plan.device, plan.folders, effort, say, not plan.quick, kept)

"""The parts of the benchmark in their order, and how they are run one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.contenders import TASKS, Setting
from benchmarks.gpu.clock import QUICK, Effort, copy_speed
from benchmarks.gpu.correctness import checks
from benchmarks.gpu.environment import describe
from benchmarks.gpu.store import FAILED, Store
from benchmarks.gpu.times import first_line, times_row
from benchmarks.gpu.waiting import waiting_checks

SIZES = ((16, 30), (16, 100), (16, 300), (64, 100))
PRECISIONS = ("fp32", "fp16")


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        device: Where.
        quick: Small and few, to see that all of it works.
        folders: Of the exported models.
    """

    device: torch.device
    quick: bool
    folders: tuple[Path, ...]

    @property
    def settings(self) -> list[Setting]:
        """In which times are taken: those that the goals are about come first."""
        if self.quick:
            return [Setting(task, 2, 3, image=64, classes=3) for task in TASKS]
        return [Setting(task, *size) for size in SIZES for task in TASKS]

    @property
    def checked(self) -> list[Setting]:
        """In which every contender is compared with float64."""
        if self.quick:
            return [self.settings[0], self.settings[-1]]
        return [Setting(task, 4, 30, image=320) for task in ("assigner", "loss+grad")]


def part_names(plan: Plan) -> list[str]:
    """All parts, in their order."""
    times = [times_name(setting, precision) for precision in PRECISIONS for setting in plan.settings]
    return ["environment", "correctness", "waiting", "bandwidth", *times]


def times_name(setting: Setting, precision: str) -> str:
    """Of a part."""
    return f"times {setting.task} {setting.batch} x {setting.slots} {precision}"


def make_parts(plan: Plan, store: Store, say: Callable[[str], None]) -> dict[str, Callable[[], Any]]:
    """A function for each of :func:`part_names`."""
    device, effort = plan.device, QUICK if plan.quick else Effort()
    largest = max(plan.settings, key=lambda setting: setting.slots if setting.batch <= 16 else 0)
    found: dict[str, Callable[[], Any]] = {
        "environment": partial(describe, device),
        "correctness": partial(checks, plan.checked, device, plan.folders, say, not plan.quick),
        "waiting": partial(waiting_checks, largest, device),
        "bandwidth": partial(bandwidth, device, plan.quick),
    }
    for precision in PRECISIONS:
        for setting in plan.settings:
            found[times_name(setting, precision)] = partial(_times, plan, store, setting, precision, effort, say)
    return found


def bandwidth(device: torch.device, quick: bool) -> dict[str, float]:
    """What a copy moves, in a size that no cache holds."""
    speed = copy_speed(device, 2**22 if quick else 2**30, 3 if quick else 21)
    return {"copy, read and written, GB/s": round(speed / 1e9, 1)}


def _times(
    plan: Plan, store: Store, setting: Setting, precision: str, effort: Effort, say: Callable[[str], None]
) -> dict[str, Any]:
    speed = store.result("bandwidth")
    rate = next(iter(speed.values())) * 1e9 if speed else None
    return times_row(setting, precision, plan.device, plan.folders, effort, rate, say, not plan.quick)


def run_parts(
    parts: Mapping[str, Callable[[], Any]],
    store: Store,
    *,
    seconds: float,
    say: Callable[[str], None],
    skip: Sequence[str] = (),
    usable: Callable[[], bool] = lambda: True,
) -> bool:
    """Run what is not done yet, in order.

    Args:
        parts: By name.
        store: Where each result goes at once.
        seconds: No part is begun later than this.
        say: Told of each.
        skip: Failed before in this run.
        usable: Whether the device still answers after a failure.

    Returns:
        Whether it came to the end; False when the device does not answer any more.
    """
    started = time.monotonic()
    for number, (name, part) in enumerate(parts.items(), 1):
        head = f"[{number}/{len(parts)}] {name}"
        if store.is_done(name):
            say(f"{head}: there already")
            continue
        if name in skip and store.state(name) == FAILED:
            continue
        if time.monotonic() - started > seconds:
            say(f"{head}: the time is over; run the command again to go on")
            return True
        say(head)
        store.begin(name)
        began = time.monotonic()
        try:
            store.finish(name, part(), time.monotonic() - began)
        except Exception as error:
            store.fail(name, f"{type(error).__name__}: {first_line(error)}")
            say(f"{head}: failed, {first_line(error)}")
            if not usable():
                return False
    return True

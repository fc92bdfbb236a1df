"""What the GPU benchmark does, in its order: first figures and comparisons that the goals need, compiling last."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common.inputs import PRECISIONS, TASKS, Setting, input_sets, make_inputs
from benchmarks.contenders import Run
from benchmarks.gpu.clock import MIB, QUICK, Effort, copy_speed, measure, peak_mib
from benchmarks.gpu.contenders import COMPILED, EXPORTED, OURS, REFERENCE, has_triton, make
from benchmarks.gpu.correctness import contender_checks, small, smoke_checks
from benchmarks.gpu.environment import describe
from benchmarks.gpu.floor import floor_bytes, needed_of
from benchmarks.gpu.results import Entry
from benchmarks.gpu.service import service_checks
from benchmarks.gpu.smoke import CASES

SIZES = ((16, 30), (16, 100), (16, 300), (64, 100))
# Settings of the goals, in float32.
GOALS = (("assigner", 16, 100), ("loss+grad", 16, 30), ("assigner", 16, 300), ("loss+grad", 16, 300))
# Input sets together are so many times as large as the second-level cache.
CACHES, FEWEST, MOST = 2.0, 2, 4


class Plan(NamedTuple):
    """Options of the benchmark.

    Attributes:
        device: Device to measure.
        quick: Small sizes and few calls, to see that everything works.
        folders: Folders of the exported models.
    """

    device: torch.device
    quick: bool
    folders: tuple[Path, ...]

    @property
    def settings(self) -> list[Setting]:
        """Settings whose times are measured, those of the goals first."""
        if self.quick:
            return [Setting(task, 2, 3, image=64, classes=3) for task in TASKS]
        goals = [Setting(*row) for row in GOALS]
        return list(dict.fromkeys([*goals, *(Setting(task, *size) for size in SIZES for task in TASKS)]))

    @property
    def compared(self) -> list[Setting]:
        """Settings in which every contender is compared with float64."""
        return [self.settings[0], self.settings[-1]] if self.quick else [Setting(row[0], 4, 30) for row in GOALS[:2]]


class Unit(NamedTuple):
    """A unit of work.

    Attributes:
        name: Its name in the results.
        contender: What runs in it, and is left out in other units where it broke the device; may be empty.
        run: Its function.
    """

    name: str
    contender: str
    run: Callable[[], Entry]


def units(plan: Plan) -> list[Unit]:
    """All units in their order."""
    device, size = plan.device, 2**22 if plan.quick else 2**30
    quickly = [name for name in (*OURS, REFERENCE) if name not in COMPILED]
    halves = [name for name in quickly if name not in EXPORTED and name != REFERENCE]
    goals = plan.settings[: 1 if plan.quick else len(GOALS)]
    found = [
        Unit("environment", "", lambda: describe(device)),
        Unit("bandwidth", "", lambda: {"GB/s": round(copy_speed(device, size, effort_of(plan)), 1)}),
        *comparing(plan, "fp32", quickly),
        *timing(plan, goals, "fp32", quickly),
        *smoke(plan),
        *comparing(plan, "fp16", halves),
        *timing(plan, plan.settings, "fp32", quickly),
        *timing(plan, plan.settings, "fp16", halves),
        *(
            Unit(f"service, {kind}", "service", partial(service_checks, plan.compared, plan.folders, kind, device))
            for kind in ("sparse", "dense")[: 1 if plan.quick else 2]
        ),
    ]
    if not plan.quick:  # compiling takes longer than all the rest
        found += [*comparing(plan, "fp32", COMPILED), *timing(plan, plan.settings, "fp32", COMPILED)]
    return list({unit.name: unit for unit in found}.values())  # the first place of each


def comparing(plan: Plan, precision: str, names: Sequence[str]) -> Iterator[Unit]:
    """Comparisons of contenders with float64."""
    for setting in plan.compared:
        for name in (name for name in names if name != REFERENCE):
            run = partial(contender_checks, setting, precision, name, plan.device, plan.folders)
            yield Unit(f"compare {setting.task} {precision}, {name}", name, partial(checked, run))


def smoke(plan: Plan) -> Iterator[Unit]:
    """Cases of the implementations that GPUs run."""
    for name, case in CASES.items():
        for implementation in ("auto", "triton") if has_triton(plan.device) else ("auto",):
            run = partial(smoke_checks, name, small(case) if plan.quick else case, implementation, plan.device)
            yield Unit(f"smoke {name}, {implementation}", implementation, partial(checked, run))


def checked(run: Callable[[], list[Entry]]) -> Entry:
    """Comparisons as an entry."""
    return {"checks": run()}


def timing(plan: Plan, settings: Sequence[Setting], precision: str, names: Sequence[str]) -> Iterator[Unit]:
    """Times and memory of contenders."""
    for setting in settings:
        for name in names:
            title = f"time {setting.task} {setting.batch} x {setting.slots} {precision}, {name}"
            yield Unit(title, name, partial(figures, plan, setting, precision, name))


def figures(plan: Plan, setting: Setting, precision: str, name: str) -> Entry:
    """Time and memory of a contender in one setting, and the bytes of its floor."""
    device, element = plan.device, PRECISIONS[precision].itemsize
    sets = input_sets(setting, precision, device, sets_for(setting, precision, device))
    run = make(setting, name, sets, plan.folders)
    # Graphs and other runtimes hold memory that torch's allocator does not count.
    counted = "graph" not in name.split() and name not in EXPORTED
    found = {
        **{"task": setting.task, "batch": setting.batch, "slots": setting.slots, "precision": precision},
        "floor_mib": floor_mib(setting, element),
        **measure(run, len(sets), device, effort_of(plan)),
        **(memory(run, device) if counted else {}),
    }
    del run
    gc.collect()  # releases memory of sessions and graphs before the next contender
    return found


def memory(run: Run, device: torch.device) -> Entry:
    """Growth of the peak of torch's memory in a call, and the part of it that the call returns."""
    result = run(0)
    parts = result if isinstance(result, tuple) else (result,)
    return {"peak_mib": peak_mib(run, device), "returned_mib": sum(part.nbytes for part in parts) / MIB}


@lru_cache(maxsize=8)
def floor_mib(setting: Setting, element: int) -> float:
    """The floor's bytes in MiB."""
    return floor_bytes(setting, element, needed_of(setting, make_inputs(setting).truth)) / MIB


def sets_for(setting: Setting, precision: str, device: torch.device) -> int:
    """Number of input sets that must take turns, so that none is in the cache when its turn comes."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    read = sum(tensor.nbytes for tensor in make_inputs(setting, precision).predictions)
    return min(max(FEWEST, int(CACHES * cache / read) + 1), MOST)


def effort_of(plan: Plan) -> Effort:
    """How long to measure."""
    return QUICK if plan.quick else Effort()

"""The parts of the GPU benchmark in their order, and the measurement of one setting."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common.report import first_line
from benchmarks.contenders import TASKS, Setting
from benchmarks.gpu.clock import MIB, QUICK, Effort, MissingError, copy_speed, measure, peak_mib, used_mib
from benchmarks.gpu.contenders import Maker, makers
from benchmarks.gpu.correctness import contender_checks, oracle_checks, sample_checks
from benchmarks.gpu.environment import describe
from benchmarks.gpu.floor import bytes_of, needed_bytes, needed_of
from benchmarks.gpu.inputs import PRECISIONS, input_sets
from benchmarks.gpu.store import Kept, Progress, Store
from benchmarks.gpu.waiting import waiting_checks
from yolo_assigner.export.contract import ContractError

SIZES = ((16, 30), (16, 100), (16, 300), (64, 100))
MEASURED = ("fp32", "fp16")
# Settings of the goals, which are measured first, in float32.
GOAL_ROWS = (("assigner", 16, 100), ("loss+grad", 16, 30), ("assigner", 16, 300), ("loss+grad", 16, 300))
# Input sets together are so many times as large as the second-level cache.
CACHES, FEWEST, MOST = 2.0, 2, 4
CORRECT, TIMES = "correct ", "times "
Part = Callable[[], Any]


class Plan(NamedTuple):
    """Options of the benchmark.

    Attributes:
        device: Device to measure.
        quick: Small sizes and few calls, to see that everything works.
        folders: Folders of the exported models.
        without: Contenders to leave out.
    """

    device: torch.device
    quick: bool
    folders: tuple[Path, ...]
    without: tuple[str, ...] = ()

    @property
    def settings(self) -> list[Setting]:
        """Settings whose times are measured."""
        if self.quick:
            return [Setting(task, 2, 3, image=64, classes=3) for task in TASKS]
        return [Setting(task, *size) for size in SIZES for task in TASKS]

    @property
    def goal_settings(self) -> list[Setting]:
        """Settings of the goals; in a quick run the first setting."""
        return self.settings[:1] if self.quick else [Setting(*row) for row in GOAL_ROWS]

    @property
    def checked(self) -> list[Setting]:
        """Settings in which every contender is compared with float64. Engines are built for 640 pixels alone."""
        if self.quick:
            return [self.settings[0], self.settings[-1]]
        return [Setting(task, 4, 30) for task in ("assigner", "loss+grad")]


def times_name(setting: Setting, precision: str) -> str:
    """Name of the part that measures a setting."""
    return f"{TIMES}{setting.task} {setting.batch} x {setting.slots} {precision}"


def make_parts(plan: Plan, store: Store, say: Callable[[str], None]) -> dict[str, Part]:
    """Functions of the parts by name, in their order."""
    device = plan.device
    largest = max(plan.settings, key=lambda setting: setting.slots if setting.batch <= 16 else 0)
    found: dict[str, Part] = {"environment": partial(describe, device)}
    for name, known in (("oracle", oracle_checks), ("sample", sample_checks)):
        found[CORRECT + name] = partial(known, device, Kept(store, CORRECT + name, plan.without))
    found["bandwidth"] = partial(bandwidth, device, plan.quick)
    for setting in plan.goal_settings:
        found[times_name(setting, "fp32")] = _times(plan, store, setting, "fp32", say)
    for precision in MEASURED:
        for setting in plan.checked:
            name = f"{CORRECT}{setting.task} {precision}"
            found[name] = partial(
                contender_checks,
                *(setting, precision, device, plan.folders, say, not plan.quick),
                Kept(store, name, plan.without),
            )
    found["waiting"] = partial(waiting_checks, largest, device)
    for precision in MEASURED:
        for setting in plan.settings:
            # The settings of the goals keep their places.
            found.setdefault(times_name(setting, precision), _times(plan, store, setting, precision, say))
    return found


def bandwidth(device: torch.device, quick: bool) -> dict[str, float]:
    """Speed of a copy that is larger than every cache."""
    speed = copy_speed(device, 2**22 if quick else 2**30, 3 if quick else 21)
    return {"copy, read and written, GB/s": round(speed / 1e9, 1)}


def _times(plan: Plan, store: Store, setting: Setting, precision: str, say: Callable[[str], None]) -> Part:
    kept = Kept(store, times_name(setting, precision), plan.without)
    effort = QUICK if plan.quick else Effort()
    return partial(times_row, setting, precision, plan.device, plan.folders, effort, say, not plan.quick, kept)


def times_row(
    setting: Setting,
    precision: str,
    device: torch.device,
    folders: Sequence[Path],
    effort: Effort,
    say: Callable[[str], None] = lambda _: None,
    compiling: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure times, memory and the bytes of both floors of one setting.

    Args:
        setting: Task and sizes.
        precision: ``fp32`` or ``fp16``.
        device: Device to measure.
        folders: Folders of the exported models.
        effort: How long each contender is measured.
        say: Receives the name of each contender.
        compiling: Whether to take the compiled contenders too.
        progress: Decides which contenders run, and records their entries.
    """
    progress = progress or Progress()
    element = PRECISIONS[precision].itemsize
    sets = input_sets(setting, precision, device, sets_for(setting, element, device))
    made = makers(setting, precision, sets, folders, compiling)
    contenders = {}
    for name in progress.order(made):
        if reason := progress.left_out(name):
            contenders[name] = {"reason": reason}
            continue
        say(name)
        contenders[name] = progress.entry(name, partial(entry_of, name, made[name], len(sets), device, effort))
    return {
        **setting._asdict(),
        "precision": precision,
        "sets": len(sets),
        "floor_mib": bytes_of(setting, element) / MIB,
        "needed_mib": needed_bytes(setting, element, needed_of(setting, sets[0].truth)) / MIB,
        "contenders": {name: contenders[name] for name in made},
    }


def sets_for(setting: Setting, element: int, device: torch.device) -> int:
    """Number of input sets that must take turns, so that none is in the cache when its turn comes."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    read = bytes_of(setting._replace(task="loss"), element)
    return min(max(FEWEST, int(CACHES * cache / read) + 1), MOST)


def entry_of(name: str, make: Maker, sets: int, device: torch.device, effort: Effort) -> dict[str, Any]:
    """Figures of one contender, or the reason why it has none. An error of the device itself is raised again."""
    before = used_mib(device)
    try:
        run = make()
        run(0)
        # Graphs and other runtimes hold memory that torch's allocator does not count.
        foreign = "graph" in name.split() or name.startswith(("onnxruntime", "tensorrt"))
        memory = {"device_mib": used_mib(device) - before} if foreign else {"peak_mib": peak_mib(run, device)}
        return {**measure(run, sets, device, effort), **(memory if device.type == "cuda" else {})}
    except (MissingError, ContractError) as error:
        return {"reason": str(error)}
    except Exception as error:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises after an error of the device
        return {"reason": f"{type(error).__name__}: {first_line(error)}"}
    finally:
        run = None  # type: ignore[assignment]
        if device.type == "cuda":
            gc.collect()  # releases memory of sessions and graphs, which would distort the next contender's figure

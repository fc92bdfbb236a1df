"""What the GPU benchmark does, in its order: first figures and comparisons that the goals need, compiling last."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common.inputs import PRECISIONS, TASKS, Setting, input_sets, make_inputs
from benchmarks.common.timing import clock
from benchmarks.contenders import feed_of
from benchmarks.gpu.contenders import ASKED, COMPILED, EXPORTED, OURS, REFERENCE, find_model, make
from benchmarks.gpu.correctness import CASES, Case, by_name, checks, compare, expected, inputs_of, usual
from benchmarks.gpu.measure import MIB, copy_speed, floor_bytes, measure, memory
from benchmarks.gpu.report import TARGETS
from benchmarks.gpu.results import Entry, describe
from yolo_assigner.serve.inference.runners.base import RunnerError

SIZES = ((16, 30), (16, 100), (16, 300), (64, 100))
REQUESTS = 6
SECONDS = {False: 0.25, True: 0.0}  # how long to measure, and so quickly
SETS = 4  # input sets that take turns; together they exceed the second-level cache also where one is small


class Plan(NamedTuple):
    """Options of the benchmark.

    Attributes:
        device: Device to measure.
        quick: Small sizes and few calls, to see that everything works.
        models: Folder of the exported models.
    """

    device: torch.device
    quick: bool
    models: Path

    def sized(self, settings: Iterable[Setting]) -> list[Setting]:
        """Distinct settings in their order, small ones if it is to go quickly."""
        return list(dict.fromkeys(Case(each).small().setting if self.quick else each for each in settings))


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
    quickly = [name for name in OURS if name not in COMPILED]
    halves = [name for name in quickly if name not in EXPORTED]
    goals = plan.sized(Setting(target.task, 16, target.slots) for target in TARGETS)
    settings = plan.sized([*goals, *(Setting(task, *size) for size in SIZES for task in TASKS)])
    found = [
        Unit("environment", "", partial(describe, device)),
        Unit("bandwidth", "", lambda: {"GB/s": round(copy_speed(device, size, SECONDS[plan.quick]), 1)}),
        *comparing(plan, usual("fp32"), quickly),
        *timing(plan, goals, "fp32", [*quickly, REFERENCE]),
        *comparing(plan, CASES, ("auto", "triton")),
        *comparing(plan, usual("fp16"), halves),
        *timing(plan, settings, "fp32", [*quickly, REFERENCE]),
        *timing(plan, settings, "fp16", halves),
        *(Unit(f"service, {how}", "service", partial(served, plan, how)) for how in ("sparse", "dense")),
    ]
    if not plan.quick:  # compiling takes longer than all the rest
        found += [*comparing(plan, usual("fp32"), COMPILED), *timing(plan, settings, "fp32", COMPILED)]
    return list({unit.name: unit for unit in found}.values())  # the first place of each


def comparing(plan: Plan, cases: Mapping[str, Case], names: Sequence[str]) -> Iterator[Unit]:
    """Comparisons of contenders with float64."""
    for title, case in cases.items():
        for name in names:
            its = case.small() if plan.quick else case
            yield Unit(f"compare {title}, {name}", name, partial(checks, its, name, plan.device, plan.models))


def served(plan: Plan, implementation: str) -> Entry:
    """Comparisons of a server with exported models, and the median milliseconds of a request."""
    import onnxruntime

    from tests.served import serving
    from yolo_assigner.serve.client.client import AssignerClient

    on_gpu, found = plan.device.type == "cuda", Entry(checks=[])
    if on_gpu and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RunnerError(f"onnxruntime {onnxruntime.__version__} has no CUDA; bring onnxruntime-gpu")
    cases = [case.small() if plan.quick else case for case in usual("fp32").values()]
    models = {case: find_model(plan.models, case.setting, implementation) for case in cases}
    folder, words = plan.models / implementation, ("--engine", "onnxruntime", "--device", str(plan.device))
    with serving(folder, *words) as server, AssignerClient(f"127.0.0.1:{server.port}") as client:
        for case, (_, contract) in models.items():
            task = case.setting.task
            call = partial(client.infer, contract.name, feed_of(contract.inputs, inputs_of(case)), ASKED[task])
            found["checks"] += compare(by_name(call()), expected(case))
            found[f"{task}, ms"] = 1000 * statistics.median(clock(call) for _ in range(REQUESTS))
    return found


def timing(plan: Plan, settings: Sequence[Setting], precision: str, names: Sequence[str]) -> Iterator[Unit]:
    """Times and memory of contenders."""
    for setting in settings:
        for name in names:
            title = f"time {setting.task} {setting.batch} x {setting.slots} {precision}, {name}"
            yield Unit(title, name, partial(figures, plan, setting, precision, name))


def figures(plan: Plan, setting: Setting, precision: str, name: str) -> Entry:
    """Time and memory of a contender in one setting, and the bytes of its floor."""
    device, sets = plan.device, input_sets(setting, precision, plan.device, SETS)
    run = make(setting, name, sets, plan.models)
    # Graphs and other runtimes hold memory that torch's allocator does not count.
    counted = "graph" not in name.split() and name not in EXPORTED
    found = {
        **{"task": setting.task, "size": f"{setting.batch} x {setting.slots}", "precision": precision},
        "floor, MiB": floor_mib(setting, PRECISIONS[precision].itemsize),
        **measure(run, len(sets), device, SECONDS[plan.quick]),
        **(memory(run, device) if counted else {}),
    }
    del run
    gc.collect()  # releases memory of sessions and graphs before the next contender
    return found


@lru_cache(maxsize=8)
def floor_mib(setting: Setting, element: int) -> float:
    """The floor's bytes in MiB."""
    return floor_bytes(setting, element, make_inputs(setting).truth) / MIB

"""Every contender of one setting, in one precision."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Setting
from benchmarks.gpu.clock import MIB, Effort, Run, measure, peak_mib, used_mib
from benchmarks.gpu.floor import bytes_of, needed_bytes, needed_of
from benchmarks.gpu.goals import REFERENCE, Row
from benchmarks.gpu.inputs import PRECISIONS, Inputs, input_sets
from benchmarks.gpu.ours import MissingError, ours, reference, ways_of
from benchmarks.gpu.progress import Progress
from benchmarks.gpu.runtimes import onnx_runtime, tensorrt
from benchmarks.gpu.text import first_line
from yolo_assigner.export.contract import ContractError

Maker = Callable[[], Run]
# Further sets are made until all are so many times as large as the cache between the processors and the memory.
CACHES, FEWEST, MOST = 2.0, 2, 4


def times_row(
    setting: Setting,
    precision: str,
    device: torch.device,
    folders: Sequence[Path],
    effort: Effort,
    say: Callable[[str], None] = lambda _: None,
    compiling: bool = True,
    progress: Progress | None = None,
) -> Row:
    """Times, memory and the bytes of both floors.

    Args:
        setting: What is computed.
        precision: ``fp32`` or ``fp16``.
        device: Where.
        folders: Of the exported models.
        effort: How long each is measured.
        say: Told of each contender.
        compiling: Take those that are compiled, too.
        progress: Keeps what each contender gave.
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
    """How many input sets have to take turns, so that none is still in the cache when its turn comes."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    read = bytes_of(setting._replace(task="loss"), element)
    return min(max(FEWEST, int(CACHES * cache / read) + 1), MOST)


def makers(
    setting: Setting, precision: str, sets: Sequence[Inputs], folders: Sequence[Path], compiling: bool = True
) -> dict[str, Maker]:
    """All contenders by name, not yet made."""
    made: dict[str, Maker] = {}
    for name in ways_of(setting.task):
        reason = left_out(setting, precision, name, compiling)
        made[name] = partial(_missing, reason) if reason else partial(ours, setting, name, sets)
    for formulation in ("dense", "sparse"):
        made[f"onnxruntime {formulation}"] = partial(onnx_runtime, setting, precision, formulation, sets, folders)
    for runtime in ("tensorrt", "tensorrt-rtx"):
        made[runtime] = partial(tensorrt, setting, precision, runtime, sets, folders)
    if precision == "fp32":
        made[REFERENCE] = partial(reference, setting, sets)
    return made


def left_out(setting: Setting, precision: str, name: str, compiling: bool) -> str:
    """Why one of our contenders is not made, or empty."""
    words = name.split()
    if not compiling and ("compiled" in words or "whole" in words):
        return "left out of a quick run, because compiling takes longer than all the rest"
    # One program for each size and type, and each takes a minute: only where a goal is measured by it, and checked.
    if "whole" in words and (setting.task, precision, setting.slots) != ("loss+grad", "fp32", 30):
        return "compiled only for loss+grad, M = 30, fp32, because each size takes a minute"
    return ""


def _missing(reason: str) -> Run:
    raise MissingError(reason)


def entry_of(name: str, make: Maker, sets: int, device: torch.device, effort: Effort) -> dict[str, Any]:
    """Figures of one contender, or the reason why there are none. An error of the device itself is raised again."""
    before = used_mib(device)
    try:
        run = make()
        run(0)
        # A graph's memory is its own, and that of other runtimes is none of torch's.
        foreign = "graph" in name.split() or name.startswith(("onnxruntime", "tensorrt"))
        memory = {"device_mib": used_mib(device) - before} if foreign else {"peak_mib": peak_mib(run, device)}
        return {**measure(run, sets, device, effort), **(memory if device.type == "cuda" else {})}
    except (MissingError, ContractError) as error:
        return {"reason": str(error)}
    except Exception as error:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # after an error of the device nothing works any more, and this says so
        return {"reason": f"{type(error).__name__}: {first_line(error)}"}
    finally:
        run = None  # type: ignore[assignment]
        if device.type == "cuda":
            gc.collect()  # sessions and graphs hold memory that the next contender's figure would lack

"""Time and memory of one contender on a device, and the lower bound ("floor") of its time."""

from __future__ import annotations

import statistics
import time
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.common.inputs import REG_MAX, STRIDES, Setting
from benchmarks.common.timing import clock
from benchmarks.contenders import Run
from yolo_loss import GroundTruth, make_anchors

MIB = 2**20
MS, PEAK, EXTRA = "ms", "MiB", "MiB above outputs"
FEWEST, MOST = 3, 99  # calls that count


def measure(run: Run, sets: int, device: torch.device, seconds: float = 0.25) -> dict[str, float]:
    """Median, least and ninth decile of a call's time, and the number of calls that counted.

    Args:
        run: Function of the number of an input set; sets take turns, so that no call finds its inputs in a cache.
        sets: Number of input sets.
        device: Device that it runs on. A GPU's events enclose the call, including its waits for the host.
        seconds: Time that decides the number of calls that count. Twice as long calls do not count before, in which a
            GPU raises its clocks.
    """
    calls, began = 0, time.perf_counter()
    while calls < sets or time.perf_counter() - began < 2 * seconds:
        run(calls % sets)
        calls += 1
        if calls % 16 == 0:
            settle(device)  # the host would queue calls for many times the warm-up
    settle(device)
    each = (time.perf_counter() - began) / calls
    times = sorted(_times(run, sets, device, min(max(FEWEST, int(seconds / each)), MOST)))
    figures = {"least, ms": times[0], "ninth decile, ms": times[int(0.9 * len(times))], "calls": len(times)}
    return {MS: statistics.median(times), **figures}


def _times(run: Run, sets: int, device: torch.device, calls: int) -> list[float]:
    if device.type != "cuda":
        return [1000 * clock(partial(run, call % sets)) for call in range(calls)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for call, event in enumerate(events[1:]):
        run(call % sets)
        event.record()
    torch.cuda.synchronize(device)
    return [begin.elapsed_time(end) for begin, end in pairwise(events)]


def settle(device: torch.device) -> None:
    """Wait for all queued work; its failures are raised here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(run: Run, device: torch.device) -> dict[str, float]:
    """Growth of the peak of torch's memory in one call, also without what it returns; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    run(0)
    settle(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = run(0)
    settle(device)
    peak = torch.cuda.max_memory_allocated(device)
    parts = result if isinstance(result, tuple) else (result,)
    returned = sum(part.nbytes for part in parts if isinstance(part, Tensor))
    return {PEAK: (peak - before) / MIB, EXTRA: (peak - before - returned) / MIB}


def copy_speed(device: torch.device, size: int, seconds: float) -> float:
    """Gigabytes (10^9) per second of a copy of so many bytes within the device, read and written bytes together."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2e-6 * size / measure(lambda _: target.copy_(source), 1, device, seconds)[MS]


def floor_bytes(setting: Setting, element: int, truth: GroundTruth) -> int:
    """Bytes that must move: what the result depends on, once, and no intermediate; docs/gpu.md says what that is.

    Small boxes are not enlarged, which lowers the floor.

    Args:
        setting: Task and sizes.
        element: Bytes of a class score, or of a logit of a map. Floats are of 4 otherwise, labels of 8, flags of 1.
        truth: Padded ground truth in pixels, on the CPU.
    """
    points, strides = make_anchors([torch.empty(1, 1, *grid) for grid in setting.case.grids], STRIDES)
    points = points * strides  # (A, 2)
    labels, boxes, mask = truth
    inside = ((points > boxes[:, :, None, :2]) & (points < boxes[:, :, None, 2:])).all(-1) & mask.bool()  # (B, M, A)
    of_class = one_hot(labels.squeeze(-1).long(), setting.classes).float().mT @ inside.float()  # (B, C, A)
    within, every = int(inside.any(1).sum()), setting.batch * len(points)
    if setting.task == "assigner":
        read = int((of_class > 0).sum()) * element + within * 4 * 4 + len(points) * 2 * 4
        written = every * (8 + 4 * 4 + setting.classes * 4 + 1)  # labels, boxes, scores, mask
    else:
        read = (every * setting.classes + within * 4 * REG_MAX) * element
        written = every * (setting.classes + 4 * REG_MAX) * element if setting.task == "loss+grad" else 0
    return setting.batch * setting.slots * (8 + 4 * 4 + 1) + read + written

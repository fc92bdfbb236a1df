"""Time and memory of one contender on a device."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.common.timing import clock
from benchmarks.contenders import Run

MIB = 2**20


class MissingError(RuntimeError):
    """A contender cannot run here; the text says why."""


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        warm_up: Seconds of calls that do not count, in which a GPU raises its clocks.
        seconds: Time that decides the number of calls that count, between the two following numbers.
        fewest: Least number.
        most: Largest number.
    """

    warm_up: float = 0.5
    seconds: float = 0.25
    fewest: int = 9
    most: int = 99


QUICK = Effort(0.0, 0.0, 2, 2)


def measure(run: Run, sets: int, device: torch.device, effort: Effort) -> dict[str, Any]:
    """Median, least and ninth decile of a call's time, and the number of calls that counted.

    Args:
        run: Function of the number of an input set; sets take turns, so that no call finds its inputs in a cache.
        sets: Number of input sets.
        device: Device that it runs on. A GPU's events enclose the call, including its waits for the host.
        effort: How long to measure.
    """
    calls, began = 0, time.perf_counter()
    while calls < sets or time.perf_counter() - began < effort.warm_up:
        run(calls % sets)
        calls += 1
        if calls % 16 == 0:
            settle(device)  # the host would queue calls for many times the warm-up
    settle(device)
    each = (time.perf_counter() - began) / calls
    counting = min(max(effort.fewest, int(effort.seconds / each)), effort.most)
    times = sorted((_cuda_times if device.type == "cuda" else _host_times)(run, sets, counting))
    figures = {"ms": statistics.median(times), "least_ms": times[0], "ninth_decile_ms": times[int(0.9 * len(times))]}
    return {**figures, "calls": counting}


def _cuda_times(run: Run, sets: int, calls: int) -> list[float]:
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    for call, (begin, end) in enumerate(pairs):
        begin.record()
        run(call % sets)
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


def _host_times(run: Run, sets: int, calls: int) -> list[float]:
    return [1000 * clock(partial(run, call % sets)) for call in range(calls)]


def settle(device: torch.device) -> None:
    """Wait for all queued work; its failures are raised here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(run: Run, device: torch.device) -> float | None:
    """Growth of the peak of torch's memory in one call, including what the call returns.

    Returns:
        MiB, or None on a CPU, where torch counts nothing.
    """
    if device.type != "cuda":
        return None
    run(0)
    settle(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    kept = run(0)
    settle(device)
    peak = torch.cuda.max_memory_allocated(device)
    del kept
    return (peak - before) / MIB


def copy_speed(device: torch.device, size: int, effort: Effort) -> float:
    """Gigabytes (10^9) per second of a copy within the device, read and written bytes together.

    Args:
        device: The device.
        size: Bytes of the source, larger than every cache.
        effort: How long to measure.
    """
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2e-6 * size / float(measure(lambda _: target.copy_(source), 1, device, effort)["ms"])

"""Time and memory of one contender on a device."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.common.timing import clock

MIB = 2**20
Run = Callable[[int], object]


class MissingError(RuntimeError):
    """A contender cannot run here; the text says why."""


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        warm_up: Calls that do not count.
        fewest: Least number of calls that count.
        most: Largest number of calls that count.
        seconds: Time that decides the number between the two.
    """

    warm_up: int = 3
    fewest: int = 9
    most: int = 99
    seconds: float = 0.25


QUICK = Effort(1, 2, 2, 0.0)


def measure(run: Run, sets: int, device: torch.device, effort: Effort) -> dict[str, Any]:
    """Median, least and ninth decile of a call's time, and the number of calls that counted.

    Args:
        run: Function of the number of an input set; sets take turns, so that no call finds its inputs in a cache.
        sets: Number of input sets.
        device: Device that it runs on. A GPU's events enclose the call, including its waits for the host.
        effort: How long to measure.
    """
    for turn in range(max(effort.warm_up, sets)):
        run(turn % sets)
    settle(device)

    def settled() -> None:
        run(0)
        settle(device)

    calls = min(max(effort.fewest, int(effort.seconds / max(clock(settled), 1e-9))), effort.most)
    measured = _cuda_times if device.type == "cuda" else _host_times
    times = sorted(measured(run, sets, calls))
    return {
        "ms": statistics.median(times),
        "least_ms": times[0],
        "ninth_decile_ms": times[int(0.9 * (len(times) - 1))],
        "calls": calls,
    }


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


def used_mib(device: torch.device) -> float:
    """MiB of the device's memory in use by any process; 0 on a CPU. torch's unused memory is released first."""
    if device.type != "cuda":
        return 0.0
    settle(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / MIB


def copy_speed(device: torch.device, size: int, calls: int) -> float:
    """Bytes per second of a copy within the device, read and written bytes together.

    Args:
        device: The device.
        size: Bytes of the source, larger than every cache.
        calls: Number of copies, of which the median counts.
    """
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    effort = Effort(2, calls, calls, 0.0)
    return 2000 * size / float(measure(lambda _: target.copy_(source), 1, device, effort)["ms"])

"""Time and memory of one contender on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

MIB = 2**20
Run = Callable[[int], object]


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        warm_up: Calls that do not count.
        fewest: Calls that count, at least.
        most: And at most.
        seconds: Between the two, so many as fit.
    """

    warm_up: int = 3
    fewest: int = 9
    most: int = 99
    seconds: float = 0.25


QUICK = Effort(1, 2, 2, 0.0)


def measure(run: Run, sets: int, device: torch.device, effort: Effort) -> dict[str, Any]:
    """Median, least and ninth decile of a call's time, and the calls that counted.

    Args:
        run: Takes the number of an input set; they take turns, so that no call finds its inputs in a cache.
        sets: How many there are.
        device: Where it runs. A GPU's events enclose the call, what it waits for the host included.
        effort: How long.
    """
    for turn in range(max(effort.warm_up, sets)):
        run(turn % sets)
    settle(device)
    started = time.perf_counter()
    run(0)
    settle(device)
    once = time.perf_counter() - started
    calls = min(max(effort.fewest, int(effort.seconds / max(once, 1e-9))), effort.most)
    clock = _cuda_times if device.type == "cuda" else _host_times
    times = sorted(clock(run, sets, calls))
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
    times = []
    for call in range(calls):
        started = time.perf_counter()
        run(call % sets)
        times.append(1000 * (time.perf_counter() - started))
    return times


def settle(device: torch.device) -> None:
    """Wait for all that was queued; failures of it come back here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(run: Run, device: torch.device) -> float | None:
    """How far one call raises the peak of torch's memory over what it held, with what the call returns.

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
    """Memory of the device that is taken, by whomever; 0 on a CPU. torch's own spare memory is given back first."""
    if device.type != "cuda":
        return 0.0
    settle(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / MIB


def copy_speed(device: torch.device, size: int, calls: int) -> float:
    """Bytes per second of a copy within the device, read and written bytes together.

    Args:
        device: Where.
        size: Bytes of the source, larger than every cache.
        calls: The median counts.
    """
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    effort = Effort(2, calls, calls, 0.0)
    return 2000 * size / float(measure(lambda _: target.copy_(source), 1, device, effort)["ms"])

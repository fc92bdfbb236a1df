"""Times of several contenders that take turns in one process, so that a ratio holds when the machine's speed drifts."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def clock(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def take_turns(
    runs: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 1, title: str | None = None
) -> dict[str, list[float]]:
    """Seconds of each call, turn by turn.

    Args:
        runs: Functions to time, by name.
        turns: Number of turns that count.
        warm_up: Number of turns before them that do not count.
        title: Title of a progress bar on standard error; None shows none.
    """
    rounds: range = range(warm_up + turns)
    if title is not None:
        from tqdm import tqdm

        rounds = tqdm(rounds, desc=title, file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in rounds:
        for name, run in runs.items():
            seconds = clock(run)
            if turn >= warm_up:
                times[name].append(seconds)
    return times


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios, turn by turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def medians_ms(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median milliseconds under ``NAME_ms``."""
    return {f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()}

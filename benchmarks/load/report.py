"""The results of ``benchmarks.load``, and its goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.report import Goal, goals_table, table
from benchmarks.load.client import Tally
from benchmarks.load.probe import Probed

REFUSAL_MS = 50.0
WARM_UP = 1 / 3  # share of the time after which memory must not grow
MOST_SHOWN = 20


class Sample(NamedTuple):
    """One look at the server.

    Attributes:
        seconds: Time since the load began.
        memory: Resident MiB.
        descriptors: Open files and sockets.
        segments: Descriptors of shared segments.
    """

    seconds: float
    memory: float
    descriptors: int
    segments: int


class Most(NamedTuple):
    """Limits under load of files and sockets, and of descriptors of segments."""

    descriptors: int
    segments: int


def report(
    tally: Tally, probed: Probed, samples: Sequence[Sample], descriptors: int, most: Most
) -> tuple[dict[str, Any], bool]:
    """Evaluate the results and print the tables.

    Args:
        tally: Counts of all clients.
        probed: Times of refusals.
        samples: The server under load.
        descriptors: Difference of open files and sockets after and before the load.
        most: Limits under load.

    Returns:
        All results, and whether every goal was met.
    """
    refusals = {status: milliseconds(probed.seconds[status]) for status in (413, 503, 504)}
    seen = {s: milliseconds([seconds for status, seconds in tally.refusals if status == s]) for s in (413, 503, 504)}
    memory = memory_of(samples)
    wrong, lost = tally.wrong + probed.wrong, tally.lost
    goals = [
        Goal("wrong answers", len(wrong), 0),
        Goal("lost answers", len(lost), 0),
        *(Goal(f"slowest {status}, ms", row["max"], REFUSAL_MS) for status, row in refusals.items() if row["count"]),
        Goal("memory: peak of the last third over that of the second", memory["growth"], 1.1),
        Goal("files and sockets under load", max(sample.descriptors for sample in samples), most.descriptors),
        Goal("descriptors of segments", max(sample.segments for sample in samples), most.segments),
        Goal("files and sockets left after it", descriptors, 2),
    ]
    results = {
        "seconds": samples[-1].seconds,
        "answers": dict(sorted(tally.outcomes.items())),
        "goals": [{"what": g.what, "reached": g.reached, "most": g.limit, "met": g.met} for g in goals],
        "refusals_ms": {str(status): row for status, row in refusals.items()},
        "floor_ms": milliseconds(probed.floor),
        "refusals_ms_at_busy_clients": {str(status): row for status, row in seen.items()},
        "memory_mib": memory,
        "wrong": wrong[:MOST_SHOWN],
        "lost": lost[:MOST_SHOWN],
    }
    _show(results, goals)
    return results, all(goal.met for goal in goals)


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Count, percentiles, maximum and number over the limit of times."""
    if not seconds:
        return {"count": 0}
    values = 1000 * np.array(seconds)
    p50, p99 = np.percentile(values, (50, 99))
    return {
        "count": len(values),
        "p50": round(float(p50), 2),
        "p99": round(float(p99), 2),
        "max": round(float(values.max()), 2),
        "over": int((values > REFUSAL_MS).sum()),
    }


def memory_of(samples: Sequence[Sample]) -> dict[str, float]:
    """Memory at the beginning, its peak, and its growth after the warm-up."""
    end = samples[-1].seconds
    warm = [sample for sample in samples if sample.seconds >= WARM_UP * end]
    middle = [sample.memory for sample in warm if sample.seconds < 2 * WARM_UP * end]
    last = [sample.memory for sample in warm if sample.seconds >= 2 * WARM_UP * end]
    slope = np.polyfit([sample.seconds / 60 for sample in warm], [sample.memory for sample in warm], 1)[0]
    return {
        "begin": round(samples[0].memory, 1),
        "peak": round(max(sample.memory for sample in samples), 1),
        "slope_per_minute": round(float(slope), 2),
        "growth": round(max(last) / max(middle), 3),
    }


def _show(results: dict[str, Any], goals: Sequence[Goal]) -> None:
    print("\nanswers by status: " + ", ".join(f"{count} {what}" for what, count in results["answers"].items()))
    memory = results["memory_mib"]
    print(f"memory: {memory['peak']:.0f} MiB at most, {memory['slope_per_minute']:+.1f} MiB a minute after the warm-up")
    rows = [
        (f"{status}{where}", *(f"{value:g}" for value in row.values()))
        for key, where in (("refusals_ms", ""), ("refusals_ms_at_busy_clients", " at busy clients"))
        for status, row in results[key].items()
        if row["count"]
    ]
    rows.append(("any reply, of a process that does nothing else", *map("{:g}".format, results["floor_ms"].values())))
    print("\n" + table(("refusals, ms", "count", "p50", "p99", "max", "over 50"), rows))
    print("\n" + goals_table(goals, "g"))
    for text in (*results["wrong"], *results["lost"]):
        print(text)

"""What the wire costs: the infer route beside a bare application that only counts bytes, on loopback.

``python -m benchmarks.transport``. Both run in processes of their own under the same server settings; the model behind
the route computes nothing. One client sends to both in turn, so a ratio holds when the machine's speed drifts.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm, trange

from benchmarks.timing import clock, median_ratio
from benchmarks.wire_client import Connection, Payload, binary_payload, json_payload, running

MB = 10**6
SIZES = {"5 MB": 1, "16 MB": 3, "77 MB": 16}  # images of 640 x 640 pixels with 80 classes, float32
RESULTS = Path(__file__).parent / "results" / "transport.json"
FLAT_AFTER = 100  # requests after which memory is to stay as it is


class Goal(NamedTuple):
    """One figure beside what was wanted."""

    what: str
    reached: float
    wanted: float
    at_least: bool

    def row(self) -> str:
        """Of the table."""
        sign, met = (">=", self.reached >= self.wanted) if self.at_least else ("<=", self.reached <= self.wanted)
        return f"| {self.what} | {sign} {self.wanted:g} | {self.reached:.2f} | {'yes' if met else 'NO'} |"


def main() -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("--turns", type=int, default=25, help="turns that count, after three that do not")
    parser.add_argument("--requests", type=int, default=1000, help="requests after which memory is looked at")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with running("bare") as bare, running("infer") as infer:
        times = {name: measure(bare, infer, images, options.turns) for name, images in SIZES.items()}
        as_json = measure_json(infer, options.turns)
    with running("infer") as fresh:
        memory = measure_memory(fresh, options.requests)
    goals = [
        Goal("16 MB request, GB/s", times["16 MB"]["gigabytes_per_second"], 1.0, True),
        Goal("77 MB, times the bare application's", times["77 MB"]["times_bare"], 1.6, False),
        Goal("peak extra memory over the payload, 77 MB", memory["peak_over_payload"], 2.5, False),
        Goal(f"memory grown after request {FLAT_AFTER}, MiB", memory["grown_mib"], 16.0, False),
        Goal("5 MB, times faster than JSON", as_json["times_faster"], 10.0, True),
    ]
    results = {"machine": machine(), "times": times, "json": as_json, "memory": memory}
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("\n| what | wanted | reached | met |\n| --- | --- | --- | --- |")
    print("\n".join(goal.row() for goal in goals))
    return 0


def measure(bare: Connection, infer: Connection, images: int, turns: int) -> dict[str, float]:
    """Median time of a request, and over that of the bare application."""
    payload = binary_payload(images)
    runs: dict[str, Callable[[], Any]] = {"bare": lambda: bare.send(payload), "infer": lambda: infer.send(payload)}
    times = in_turns(runs, turns, f"{payload.size / MB:.0f} MB")
    return {
        "megabytes": payload.size / MB,
        "times_bare": median_ratio(times["infer"], times["bare"]),
        "gigabytes_per_second": payload.size / 1e9 / statistics.median(times["infer"]),
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()},
    }


def measure_json(infer: Connection, turns: int) -> dict[str, float]:
    """The same tensors as bytes and as JSON."""
    binary, text = binary_payload(SIZES["5 MB"]), json_payload(SIZES["5 MB"])
    runs: dict[str, Callable[[], Any]] = {"binary": lambda: infer.send(binary), "json": lambda: infer.send(text)}
    times = in_turns(runs, max(turns // 5, 3), "JSON")
    return {
        "times_faster": median_ratio(times["json"], times["binary"]),
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()},
    }


def in_turns(runs: dict[str, Callable[[], Any]], turns: int, title: str) -> dict[str, list[float]]:
    """Seconds of each call, turn by turn; the first three do not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in trange(turns + 3, desc=title, file=sys.stderr):
        for name, run in runs.items():
            seconds = clock(run)
            if turn >= 3:
                times[name].append(seconds)
    return times


def measure_memory(infer: Connection, requests: int) -> dict[str, float]:
    """Of a fresh server: how far the largest request raises its peak, and how it grows over many."""
    small, large = binary_payload(1, side=64), binary_payload(SIZES["77 MB"])
    infer.send(small)
    before = infer.resident()
    peak = infer.peak(large) - before
    payloads = [binary_payload(images) for images in (1, 2, 3)]
    grown = resident_over_requests(infer, payloads, requests)
    return {"peak_over_payload": peak / large.size, "grown_mib": grown / 2**20, "requests": requests}


def resident_over_requests(infer: Connection, payloads: Sequence[Payload], requests: int) -> float:
    """Bytes by which the server is larger after the last request than after ``FLAT_AFTER``."""
    settled = 0
    sizes = np.random.default_rng(0).integers(len(payloads), size=requests)
    for number, size in enumerate(tqdm(sizes, desc="memory", file=sys.stderr)):
        infer.send(payloads[size])
        if number == FLAT_AFTER:
            settled = infer.resident()
    return infer.resident() - settled


def machine() -> dict[str, str]:
    """What the figures were taken with."""
    packages = ("uvicorn", "httptools", "uvloop", "fastapi", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


if __name__ == "__main__":
    sys.exit(main())

"""Cost of the HTTP layer: the infer route beside a bare application that only counts bytes, on loopback.

``python -m benchmarks.transport``. Both run in processes of their own with the same settings of the HTTP server; the
model behind the route computes nothing. One client sends to both in turn. Linux only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.common.client import Payload, send
from benchmarks.common.report import RESULTS, Goal, goals_table, machine, write_json
from benchmarks.common.timing import median_ratio, medians_ms, take_turns
from benchmarks.transport_server import Running, binary_payload, running, text_payload
from tests.served import resident

MB = 10**6
SIZES = {"5 MB": 1, "16 MB": 3, "77 MB": 16}  # images of 640 x 640 pixels with 80 classes, float32
WARM_UP = 3  # turns that do not count
FLAT_AFTER = 100  # requests after which the server's memory must not grow
PEAK_SECONDS = 0.002  # between two looks at the memory


def main() -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("--turns", type=int, default=25, help="turns that count, after three that do not")
    parser.add_argument("--requests", type=int, default=1000, help="requests after which memory is looked at")
    parser.add_argument("--out", type=Path, default=RESULTS / "transport.json")
    options = parser.parse_args()
    with running("bare") as bare, running("infer") as infer:
        times = {name: measure(bare, infer, images, options.turns) for name, images in SIZES.items()}
        as_json = measure_json(infer, options.turns)
    with running("infer") as fresh:
        memory = measure_memory(fresh, options.requests)
    goals = [
        Goal("16 MB request, GB/s", times["16 MB"]["gigabytes_per_second"], 1.0, True),
        Goal("77 MB, times the bare application's", times["77 MB"]["times_bare"], 1.6),
        Goal("peak extra memory over the payload, 77 MB", memory["peak_over_payload"], 2.5),
        Goal(f"memory grown after request {FLAT_AFTER}, MiB", memory["grown_mib"], 16.0),
        Goal("5 MB, times faster than JSON", as_json["times_faster"], 10.0, True),
    ]
    write_json(options.out, {"machine": machine(), "times": times, "json": as_json, "memory": memory})
    print("\n" + goals_table(goals, ".2f"))
    return 0


def sending(server: Running, payload: Payload) -> Callable[[], object]:
    """A function without arguments that sends a request and waits for its reply."""
    return lambda: send(server.wire, payload)


def measure(bare: Running, infer: Running, images: int, turns: int) -> dict[str, float]:
    """Median time of a request, and its ratio to that of the bare application."""
    payload = binary_payload(images)
    runs = {"bare": sending(bare, payload), "infer": sending(infer, payload)}
    times = take_turns(runs, turns, WARM_UP, f"{payload.size / MB:.0f} MB")
    return {
        "megabytes": payload.size / MB,
        "times_bare": median_ratio(times["infer"], times["bare"]),
        "gigabytes_per_second": payload.size / 1e9 / statistics.median(times["infer"]),
        **medians_ms(times),
    }


def measure_json(infer: Running, turns: int) -> dict[str, float]:
    """Times of the same tensors as bytes and as JSON."""
    images = SIZES["5 MB"]
    runs = {"binary": sending(infer, binary_payload(images)), "json": sending(infer, text_payload(images))}
    times = take_turns(runs, max(turns // 5, 3), WARM_UP, "JSON")
    return {"times_faster": median_ratio(times["json"], times["binary"]), **medians_ms(times)}


def measure_memory(infer: Running, requests: int) -> dict[str, float]:
    """How far the largest request raises the peak of a fresh server, and how it grows over many requests."""
    small, large = binary_payload(1, side=64), binary_payload(SIZES["77 MB"])
    send(infer.wire, small)
    before = resident(infer.pid)
    peak = peak_resident(infer.pid, sending(infer, large)) - before
    payloads = [binary_payload(images) for images in (1, 2, 3)]
    grown = resident_over_requests(infer, payloads, requests)
    return {"peak_over_payload": peak / large.size, "grown_mib": grown / 2**20, "requests": requests}


def peak_resident(pid: int, work: Callable[[], object]) -> int:
    """Largest resident memory of a process and its children in bytes while a function runs."""
    done = threading.Event()
    seen = [resident(pid)]

    def look() -> None:
        while not done.wait(PEAK_SECONDS):
            seen.append(resident(pid))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        work()
    finally:
        done.set()
        watching.join()
    return max(*seen, resident(pid))


def resident_over_requests(infer: Running, payloads: Sequence[Payload], requests: int) -> float:
    """Bytes by which the server's memory grows from request ``FLAT_AFTER`` to the last one."""
    settled = 0
    sizes = np.random.default_rng(0).integers(len(payloads), size=requests)
    for number, size in enumerate(tqdm(sizes, desc="memory", file=sys.stderr)):
        send(infer.wire, payloads[size])
        if number == FLAT_AFTER:
            settled = resident(infer.pid)
    return resident(infer.pid) - settled


if __name__ == "__main__":
    sys.exit(main())

"""Gain of dynamic batching: requests per second of a server that batches, over one that does not.

``python -m benchmarks.batching``. Many connections send small requests to two servers of exported models in turn. Every
answer is compared to the bit with the first one of the server that computes each request alone. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import uvloop
from tqdm import tqdm

from benchmarks.common.client import Payload, exchange
from benchmarks.common.report import RESULTS, table, write_json
from benchmarks.load.cases import ARTIFACTS, NUM_CLASSES, Case, Size, payload_of
from examples.service import export_once
from tests.served import Served, serving

CONNECTIONS, EACH, TURNS = 16, 12, 7
TARGETS = ("fg_mask", "target_gt_idx", "target_weights")
SIZES = (Size(1, 10, 320, 320), Size(1, 30, 640, 640), Size(4, 30, 320, 320))
CASES = [
    Case(model, size, "binary", outputs)
    for model, outputs in (("assigner", TARGETS), ("loss", ("loss", "image_sums")))
    for size in SIZES
]


async def ask(port: int, payload: Payload, times: int) -> set[bytes]:
    """Send a request several times on one connection, and return the distinct bodies of the replies."""
    streams = await asyncio.open_connection("127.0.0.1", port)
    answers = [await exchange(streams, payload) for _ in range(times)]
    if refused := [answer for answer in answers if answer.status != 200]:
        raise RuntimeError(f"the server refused: {refused[0].status} {refused[0].body[:500]!r}")
    streams[1].close()
    await streams[1].wait_closed()
    return {answer.body for answer in answers}


async def rate(port: int, payloads: Sequence[Payload], expected: Sequence[bytes]) -> float:
    """Requests per second of all connections together.

    Raises:
        RuntimeError: An answer is not the expected one.
    """
    begun = time.perf_counter()
    answers = await asyncio.gather(*(ask(port, payload, EACH) for payload in payloads))
    seconds = time.perf_counter() - begun
    if [{body} for body in expected] != answers:
        raise RuntimeError("a request that was computed with others has another answer than alone")
    return len(payloads) * EACH / seconds


async def compare(case: Case, alone: Served, together: Served) -> dict[str, Any]:
    """Send one case to both servers in turn.

    Args:
        case: The request.
        alone: Server without batching.
        together: Server with batching.
    """
    payloads = [payload_of(case, number) for number in range(CONNECTIONS)]
    expected = [(await ask(alone.port, payload, 1)).pop() for payload in payloads]
    ratios, before = [], calls(together, case.model)
    for _ in range(TURNS):
        base = await rate(alone.port, payloads, expected)
        ratios.append(await rate(together.port, payloads, expected) / base)
    requests, executions = (after - past for after, past in zip(calls(together, case.model), before, strict=True))
    return {
        "case": case.name,
        "times_as_many": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
        "requests_a_call": round(requests / executions, 1),
    }


def calls(server: Served, model: str) -> tuple[int, int]:
    """Requests answered so far, and calls of the model."""
    with urlopen(f"http://127.0.0.1:{server.port}/v2/models/{model}/stats") as reply:
        (stats,) = json.load(reply)["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="most images of one call")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that an idle engine waits for others")
    parser.add_argument("--threads", type=int, default=0, help="of each model, 0 for one per core")
    parser.add_argument("--out", type=Path, default=RESULTS / "batching.json")
    options = parser.parse_args(arguments)
    export_once(ARTIFACTS, NUM_CLASSES)
    common = ("--threads", str(options.threads), "--log-level", "warning")
    with ExitStack() as stack:
        alone = stack.enter_context(serving(ARTIFACTS, *common))
        words = ("--batch-images", str(options.images), "--batch-wait", str(options.wait))
        together = stack.enter_context(serving(ARTIFACTS, *common, *words))
        rows = [uvloop.run(compare(case, alone, together)) for case in tqdm(CASES, desc="cases")]
    limits = {name: getattr(options, name) for name in ("images", "wait", "threads")}
    write_json(options.out, {"connections": CONNECTIONS, "cores": os.cpu_count(), **limits, "cases": rows})
    head = ("case", "times as many requests a second", "least, most", "requests a call")
    cells = ((r["case"], r["times_as_many"], f"{r['least']}, {r['most']}", r["requests_a_call"]) for r in rows)
    print(table(head, cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())

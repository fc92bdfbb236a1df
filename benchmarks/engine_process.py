"""What it costs one caller that models are in a process of their own: the same requests to two servers in turn.

``python -m benchmarks.engine_process``. Both have the same exported models; one computes in its own process. What it
gains many callers shows ``python -m benchmarks.load`` beside ``python -m benchmarks.load -- --no-engine-process``.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import closing
from pathlib import Path

from benchmarks.load.cases import LARGE, NUM_CLASSES, ONE, SMALL, TINY, Case, payload_of
from benchmarks.load.processes import ARTIFACTS
from benchmarks.timing import median_ratio
from benchmarks.transport import MB, in_turns, machine
from benchmarks.wire_client import Connection, Payload
from examples.service import export_once
from tests.served import serving

CASES = (
    Case("loss", TINY, "binary"),
    Case("loss", SMALL, "binary"),
    Case("loss", SMALL, "json"),
    Case("assigner", ONE, "binary"),
    Case("loss", LARGE, "binary", ("loss", "image_sums")),
    Case("loss_grad", LARGE, "fp16"),
)
RESULTS = Path(__file__).parent / "results" / "engine_process.json"


def main() -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_process", description=__doc__)
    parser.add_argument("--turns", type=int, default=25, help="turns that count, after three that do not")
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="models of 80 classes; exported if missing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    export_once(options.artifacts, NUM_CLASSES, ("assigner", "loss", "loss_grad"))
    words = ("--log-level", "error")
    with (
        serving(options.artifacts, *words) as apart,
        serving(options.artifacts, *words, "--no-engine-process") as together,
        closing(Connection(apart.port, 0)) as to_apart,
        closing(Connection(together.port, 0)) as to_together,
    ):
        rows = [measure(case, to_apart, to_together, options.turns) for case in CASES]
    options.out.write_text(json.dumps({"machine": machine(), "cases": rows}, indent=2) + "\n", encoding="utf-8")
    print("\n| request | MB | own process, ms | the server's, ms | times |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['case']} | {row['megabytes']:.1f} | {row['apart_ms']:.2f} | {row['together_ms']:.2f} ", end="")
        print(f"| {row['times']:.2f} |")
    return 0


def measure(case: Case, apart: Connection, together: Connection, turns: int) -> dict[str, float | str]:
    """Median times of a request at both servers, and the median of their ratios."""
    sent = payload_of(case, 0)
    payload = Payload(sent.head, [memoryview(part) for part in sent.body])
    times = in_turns(
        {"apart": lambda: apart.send(payload), "together": lambda: together.send(payload)}, turns, case.name
    )
    return {
        "case": case.name,
        "megabytes": payload.size / MB,
        "times": median_ratio(times["apart"], times["together"]),
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()},
    }


if __name__ == "__main__":
    sys.exit(main())

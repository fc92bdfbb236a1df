"""Cost of the engine process for one caller: the same requests to two servers in turn.

``python -m benchmarks.engine_process``. Both have the same exported models; one computes in its own process. The gain
for many callers is the difference of ``python -m benchmarks.load`` and ``python -m benchmarks.load --
--no-engine-process``. Linux only.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.common.client import connected, send
from benchmarks.common.report import RESULTS, machine, table, write_json
from benchmarks.common.timing import median_ratio, medians_ms, take_turns
from benchmarks.load.cases import ARTIFACTS, LARGE, NUM_CLASSES, ONE, SMALL, TINY, Case, payload_of
from benchmarks.transport import MB, WARM_UP
from examples.service import export_once
from tests.serve.hostile.wire import Wire
from tests.served import serving

CASES = (
    Case("loss", TINY, "binary"),
    Case("loss", SMALL, "binary"),
    Case("loss", SMALL, "json"),
    Case("assigner", ONE, "binary"),
    Case("loss", LARGE, "binary", ("loss", "image_sums")),
    Case("loss_grad", LARGE, "fp16"),
)


def main() -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_process", description=__doc__)
    parser.add_argument("--turns", type=int, default=25, help="turns that count, after three that do not")
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="models of 80 classes; exported if missing")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine_process.json")
    options = parser.parse_args()
    export_once(options.artifacts, NUM_CLASSES, ("assigner", "loss", "loss_grad"))
    words = ("--log-level", "error")
    with (
        serving(options.artifacts, *words) as apart,
        serving(options.artifacts, *words, "--no-engine-process") as together,
        closing(connected(apart.port)) as to_apart,
        closing(connected(together.port)) as to_together,
    ):
        rows = [measure(case, to_apart, to_together, options.turns) for case in CASES]
    write_json(options.out, {"machine": machine(), "cases": rows})
    figures = (("megabytes", ".1f"), ("apart_ms", ".2f"), ("together_ms", ".2f"), ("times", ".2f"))
    cells = ((row["case"], *(format(row[name], digits) for name, digits in figures)) for row in rows)
    print("\n" + table(("request", "MB", "own process, ms", "the server's, ms", "times"), cells))
    return 0


def measure(case: Case, apart: Wire, together: Wire, turns: int) -> dict[str, float | str]:
    """Median times of a request at both servers, and the median of their ratios."""
    payload = payload_of(case, 0)
    runs = {"apart": partial(send, apart, payload), "together": partial(send, together, payload)}
    times = take_turns(runs, turns, WARM_UP, case.name)
    return {
        "case": case.name,
        "megabytes": payload.size / MB,
        "times": median_ratio(times["apart"], times["together"]),
        **medians_ms(times),
    }


if __name__ == "__main__":
    sys.exit(main())

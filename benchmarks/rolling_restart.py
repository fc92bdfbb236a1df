"""Two servers behind a proxy, restarted in turn under load: no request fails.

``python -m benchmarks.rolling_restart --rounds 5``. The proxy, haproxy where that is installed (a package of Debian),
else ``benchmarks.proxy``, knows of the servers only what ``/v2/health/ready`` says, and never sends a request twice.
nginx asks nobody; it is told which server is left out, and loads its configuration again. Then it closes connections of
callers that are idle, and who sends just then sends once more, as HTTP libraries do; how often is counted.
Every answer is compared to the bit with the one that a server gave alone. Exit code 1: a request failed. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from tqdm import tqdm

from benchmarks.load.cases import CASES, MIDDLE, NUM_CLASSES, ODD, SMALL, TINY, Case
from benchmarks.load.client import Client, Plan, Tally, run_all
from benchmarks.load.prepare import prepare
from benchmarks.load.processes import ARTIFACTS, FORK, NICENESS, fork
from benchmarks.load.report import milliseconds
from benchmarks.proxies import Proxy, proxy
from examples.service import export_once
from tests.served import Served, start

RESULTS = Path(__file__).parent / "results" / "rolling_restart.json"
LAME_DUCK = ("--lame-duck-seconds", "1", "--log-level", "warning")  # five times the proxies' interval of probes
SEEN_SECONDS = 0.5  # until the proxy has seen that a server is back
ROLLING = [case for case in CASES if case.size in (TINY, SMALL, ODD, MIDDLE) and case.form != "shared"]


def main() -> int:
    """Run, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolling_restart", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that both servers are restarted")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--proxy", choices=("haproxy", "nginx", "python"), default="haproxy" if shutil.which("haproxy") else "python"
    )
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="models of 80 classes; exported if missing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    export_once(options.artifacts, NUM_CLASSES, ("assigner", "loss", "loss_grad"))
    results = roll(options.artifacts, ROLLING, options.rounds, options.connections, options.proxy)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    reply = results["reply_ms"]
    print("\n| proxy | restarts | requests | resent | failed | reply p50, ms | p99 | max |\n" + "| --- " * 8 + "|")
    counts = (results[name] for name in ("proxy", "restarts", "requests", "resent"))
    figures = (*counts, len(results["failed"]), *(reply[name] for name in ("p50", "p99", "max")))
    print("| " + " | ".join(map(str, figures)) + " |")
    for text in results["failed"][:20]:
        print(text)
    return 1 if results["failed"] else 0


def roll(artifacts: Path, cases: Sequence[Case], rounds: int, connections: int, kind: str) -> dict[str, Any]:
    """Restart both servers so many times while clients send cases through the proxy.

    Args:
        artifacts: What the servers serve.
        cases: What clients ask for; nothing in shared memory.
        rounds: Times that each server is restarted.
        connections: Clients, each with one connection to the proxy.
        kind: The proxy: ``haproxy``, ``nginx`` or ``python``.
    """
    with _pair(artifacts) as servers, proxy(kind, [server.port for server in servers]) as before:
        prepared = prepare(servers[0].port, cases, {})
        stop = FORK.Event()
        plan = Plan(before.port, prepared, 0, {}, lambda: not stop.is_set(), plain=True, resend=kind == "nginx")
        clients = fork(_work, plan, connections)
        time.sleep(SEEN_SECONDS)
        turns = tqdm([0, 1] * rounds, desc="restarts", file=sys.stderr)
        codes = [_restart(servers, place, artifacts, before) for place in turns]
        stop.set()
        tally: Tally = clients.recv()
    failed = tally.wrong + tally.lost
    failed += [f"a server ended with code {code}" for code in codes if code]
    return {
        "proxy": kind,
        "restarts": len(codes),
        "requests": sum(tally.outcomes.values()) + len(tally.lost),
        "resent": tally.resent,
        "failed": failed,
        "reply_ms": {name: value for name, value in milliseconds(tally.replies).items() if name != "over"},
    }


@contextmanager
def _pair(artifacts: Path) -> Iterator[list[Served]]:
    """Two servers that are ready; restarted ones take the place of the first in the list."""
    servers = [start(artifacts, *LAME_DUCK) for _ in range(2)]
    try:
        for server in servers:
            server.wait_until_ready()
        yield servers
    finally:
        for server in servers:
            server.close()


def _restart(servers: list[Served], place: int, artifacts: Path, before: Proxy) -> int:
    """Stop a server as an orchestrator does, start another one on its port, and return the exit code of the first."""
    before.use([server.port for server in servers if server is not servers[place]])
    code = servers[place].stop()
    servers[place].close()
    servers[place] = start(artifacts, *LAME_DUCK, port=servers[place].port)
    servers[place].wait_until_ready()
    before.use([server.port for server in servers])
    time.sleep(SEEN_SECONDS)
    return code


def _work(plan: Plan, connections: int, results: Connection) -> None:
    os.nice(NICENESS)
    tally = Tally()
    uvloop.run(run_all([Client(plan, owner, tally) for owner in range(connections)]))
    results.send(tally)


if __name__ == "__main__":
    sys.exit(main())

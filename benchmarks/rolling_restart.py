"""Two servers behind a proxy, restarted in turn under load: no request fails.

``python -m benchmarks.rolling_restart --rounds 5``. The proxy is haproxy where that is installed (a package of Debian),
else ``benchmarks.proxy``; it probes ``/v2/health/ready`` and never sends a request twice. nginx does not probe: its
configuration names the server to leave out and is reloaded. nginx then closes idle connections; a client that sends at
that moment sends once more, as HTTP libraries do, and this is counted. Every answer is compared to the bit with that of
an idle server. Exit code 1: a request failed. Linux only.
"""

from __future__ import annotations

import argparse
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

from benchmarks.common.report import RESULTS, table, write_json
from benchmarks.load.cases import ARTIFACTS, CASES, MIDDLE, NUM_CLASSES, ODD, SMALL, TINY, Case
from benchmarks.load.client import FORK, NICENESS, Client, Plan, Tally, fork, run_all
from benchmarks.load.prepare import prepare
from benchmarks.load.report import milliseconds
from benchmarks.proxy import Proxy, proxy
from examples.service import export_once
from tests.served import Served, start

LAME_DUCK = ("--lame-duck-seconds", "1", "--log-level", "warning")  # five times the proxies' interval of probes
SEEN_SECONDS = 0.5  # until the proxy has noticed that a server is back
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
    parser.add_argument("--out", type=Path, default=RESULTS / "rolling_restart.json")
    options = parser.parse_args()
    export_once(options.artifacts, NUM_CLASSES, ("assigner", "loss", "loss_grad"))
    results = roll(options.artifacts, ROLLING, options.rounds, options.connections, options.proxy)
    write_json(options.out, results)
    reply = results["reply_ms"]
    counts = ("proxy", "restarts", "requests", "resent")
    figures = (len(results["failed"]), *(reply[name] for name in ("p50", "p99", "max")))
    head = (*counts, "failed", "reply p50, ms", "p99", "max")
    print("\n" + table(head, [(*(results[name] for name in counts), *figures)]))
    for text in results["failed"][:20]:
        print(text)
    return 1 if results["failed"] else 0


def roll(artifacts: Path, cases: Sequence[Case], rounds: int, connections: int, kind: str) -> dict[str, Any]:
    """Restart both servers while clients send cases through the proxy.

    Args:
        artifacts: Folder of the exported models.
        cases: Requests of the clients, without shared memory.
        rounds: Number of restarts of each server.
        connections: Number of clients, each with one connection to the proxy.
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
    """Run two servers that are ready; a restarted one takes the place of its predecessor in the list."""
    servers = [start(artifacts, *LAME_DUCK) for _ in range(2)]
    try:
        for server in servers:
            server.wait_until_ready()
        yield servers
    finally:
        for server in servers:
            server.close()


def _restart(servers: list[Served], place: int, artifacts: Path, before: Proxy) -> int:
    """Stop a server as an orchestrator does, start another on its port, and return the exit code of the first."""
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

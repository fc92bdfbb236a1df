"""Two servers behind a proxy, restarted in turn under load: no request fails.

``python -m benchmarks.rolling_restart --rounds 5``. The proxy, haproxy where that is installed (a package of Debian),
else ``benchmarks.proxy``, knows of the servers only what ``/v2/health/ready`` says, and never sends a request twice.
Every answer is compared to the bit with the one that a server gave alone. Exit code 1: a request failed. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
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
from benchmarks.load.client import Client, Plan, Tally
from benchmarks.load.prepare import prepare
from benchmarks.load.processes import ARTIFACTS, FORK, NICENESS, fork
from benchmarks.load.report import milliseconds
from benchmarks.served import Served, start, wait_until_ready
from examples.service import export_once

RESULTS = Path(__file__).parent / "results" / "rolling_restart.json"
HAPROXY = Path(__file__).with_name("haproxy.cfg")
LAME_DUCK = ("--lame-duck-seconds", "1", "--log-level", "warning")  # ten times the proxy's probes
SEEN_SECONDS = 0.5  # until the proxy has seen that a server is back
ROLLING = [case for case in CASES if case.size in (TINY, SMALL, ODD, MIDDLE) and case.form != "shared"]


def main() -> int:
    """Run, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolling_restart", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that both servers are restarted")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--proxy", choices=("haproxy", "python"), default="haproxy" if shutil.which("haproxy") else "python"
    )
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="models of 80 classes; exported if missing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    export_once(options.artifacts, NUM_CLASSES, ("assigner", "loss", "loss_grad"))
    results = roll(options.artifacts, ROLLING, options.rounds, options.connections, options.proxy)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    reply = results["reply_ms"]
    print("\n| proxy | restarts | requests | failed | reply p50, ms | p99 | max |\n" + "| --- " * 7 + "|")
    counts = (results[name] for name in ("proxy", "restarts", "requests"))
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
        kind: The proxy, ``haproxy`` or ``python``.
    """
    with _pair(artifacts) as servers, _proxy(kind, [server.port for server in servers]) as port:
        prepared = prepare(servers[0].port, cases, {})
        stop = FORK.Event()
        plan = Plan(port, prepared, 0, {}, lambda: not stop.is_set(), plain=True)
        clients = fork(_work, plan, connections)
        time.sleep(SEEN_SECONDS)
        turns = tqdm([0, 1] * rounds, desc="restarts", file=sys.stderr)
        codes = [_restart(servers, place, artifacts) for place in turns]
        stop.set()
        tally: Tally = clients.recv()
    failed = tally.wrong + tally.lost
    failed += [f"a server ended with code {code}" for code in codes if code]
    return {
        "proxy": kind,
        "restarts": len(codes),
        "requests": sum(tally.outcomes.values()) + len(tally.lost),
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


def _restart(servers: list[Served], place: int, artifacts: Path) -> int:
    """Stop a server as an orchestrator does, start another one on its port, and return the exit code of the first."""
    code = servers[place].stop()
    servers[place].close()
    servers[place] = start(artifacts, *LAME_DUCK, port=servers[place].port)
    servers[place].wait_until_ready()
    time.sleep(SEEN_SECONDS)
    return code


@contextmanager
def _proxy(kind: str, ports: Sequence[int]) -> Iterator[int]:
    """A proxy before the servers; its port."""
    if kind == "python":
        command = [sys.executable, "-m", "benchmarks.proxy", *map(str, ports)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        port = int(process.stdout.readline()) if process.stdout else 0
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        names = {"PROXY_PORT": port, "FIRST_PORT": ports[0], "SECOND_PORT": ports[1]}
        environment = os.environ | {name: str(value) for name, value in names.items()}
        process = subprocess.Popen(["haproxy", "-f", HAPROXY, "-db", "-q"], env=environment, text=True)  # noqa: S607
    try:
        wait_until_ready(port, process)
        yield port
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _work(plan: Plan, connections: int, results: Connection) -> None:
    os.nice(NICENESS)
    results.send(uvloop.run(_clients(plan, connections)))


async def _clients(plan: Plan, connections: int) -> Tally:
    tally = Tally()
    await asyncio.gather(*(Client(plan, owner, tally).run() for owner in range(connections)))
    return tally


if __name__ == "__main__":
    sys.exit(main())

"""Load test with many clients for minutes: no wrong answer, none lost, quick refusals, bounded memory.

``python -m benchmarks.load --minutes 3``. The server is a process of its own with really exported models. Every answer
is compared to the bit with the one of the idle server, and those with ONNX Runtime without a server. Clients send all
sizes in all forms, hang up, set deadlines and come in bursts larger than the server admits. One more process only
measures refusals. Words after ``--`` go to the server. Exit code 1: a goal was missed.
Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import uvloop
from tqdm import tqdm

from benchmarks.common.report import RESULTS, write_json
from benchmarks.load.cases import ARTIFACTS, CASES, NUM_CLASSES, PREFIX, objects
from benchmarks.load.client import FORK, NICENESS, Client, Plan, Tally, fork
from benchmarks.load.prepare import check_again, check_direct, prepare, regions_for
from benchmarks.load.probe import Probed, probe, refuse_all
from benchmarks.load.report import Most, Sample, report
from examples.service import export_once
from tests.served import Served, serving

MIB = 2**20
PROCESSES, BURST, BURST_EVERY = 2, 24, 4.0
TICK = 0.5
# Descriptors of objects of shared memory, of the probe's connection, and of clients that hung up.
SPARE_DESCRIPTORS = 40
# Descriptors per request: of a segment for the body and one for the reply, two where it was made and one elsewhere.
SEGMENTS = 6


class Limits(NamedTuple):
    """Limits of the server, low enough to be reached."""

    request: int = 32 * MIB
    total: int = 128 * MIB
    requests: int = 36

    def words(self) -> tuple[str, ...]:
        """Arguments for its command line."""
        values = {"max-request-bytes": self.request, "max-total-bytes": self.total, "max-requests": self.requests}
        flags = (word for name, value in values.items() for word in (f"--{name}", str(value)))
        return (*flags, "--shared-memory", PREFIX, "--log-level", "error")


def main() -> int:
    """Run, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=40)
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="models of 80 classes; exported if missing")
    forms = sorted({case.form for case in CASES})
    parser.add_argument("--without", choices=forms, help="a form of tensors that is not sent, to see what it costs")
    parser.add_argument("--out", type=Path, default=RESULTS / "load.json")
    parser.add_argument("server", nargs="*", metavar="WORD", help="more of the server's command line, after --")
    options = parser.parse_args()
    export_once(options.artifacts, NUM_CLASSES, ("assigner", "loss", "loss_grad"))
    limits = Limits()
    with serving(options.artifacts, *limits.words(), *options.server) as server, objects() as memory:
        cases = prepare(server.port, [case for case in CASES if case.form != options.without], memory)
        regions_for(options.connections + PROCESSES * BURST, cases, server.port, memory)
        until = time.monotonic() + 60 * options.minutes
        plan = Plan(server.port, cases, limits.request, memory, lambda: time.monotonic() < until)
        before = server.descriptors()
        tally, probed, samples = run(server, plan, options.connections, until)
        time.sleep(1.0)
        tally.wrong += check_again(server.port, cases, memory)
        after = server.descriptors() - before
        code = server.stop()
    tally.wrong += check_direct(options.artifacts, cases)
    if code:
        tally.wrong.append(f"the server ended with code {code}")
    most = before + options.connections + PROCESSES * BURST + SPARE_DESCRIPTORS
    results, met = report(tally, probed, samples, after, Most(most, SEGMENTS * limits.requests))
    asked = {"server": options.server, "without": options.without}
    write_json(options.out, asked | results)
    return 0 if met else 1


def run(server: Served, plan: Plan, connections: int, until: float) -> tuple[Tally, Probed, list[Sample]]:
    """Run all clients, sample the server meanwhile, and collect their counts."""
    urgent, reply = next((case.urgent, case.reply) for case in plan.cases if case.urgent is not None)
    shares = [range(start, connections, PROCESSES) for start in range(PROCESSES)]
    extra = [range(start, start + BURST) for start in range(connections, connections + PROCESSES * BURST, BURST)]
    with socket.create_server(("127.0.0.1", 0)) as floor:
        refusing = FORK.Process(target=refuse_all, args=(floor,), daemon=True)
        refusing.start()
        pipes = [fork(_work, plan, *work) for work in zip(shares, extra, strict=True)]
        pipes.append(fork(probe, plan, urgent, reply, floor.getsockname()[1]))
        samples = _watch(server, until)
        *tallies, probed = [pipe.recv() for pipe in pipes]
        refusing.terminate()
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total, probed, samples


def _work(plan: Plan, owners: Sequence[int], extra: Sequence[int], results: Connection) -> None:
    os.nice(NICENESS)
    results.send(uvloop.run(_clients(plan, owners, extra)))


async def _clients(plan: Plan, owners: Sequence[int], extra: Sequence[int]) -> Tally:
    tally = Tally()
    clients = [Client(plan, owner, tally) for owner in owners]
    await asyncio.gather(*(client.run() for client in clients), _bursts(plan, extra, tally))
    return tally


async def _bursts(plan: Plan, owners: Sequence[int], tally: Tally) -> None:
    clients = [Client(plan, owner, tally) for owner in owners]
    pauses = int(BURST_EVERY / TICK)
    while True:
        for _ in range(pauses):
            await asyncio.sleep(TICK)
            if not plan.running():
                return
        await asyncio.gather(*(client.once(plain=True) for client in clients))
        for client in clients:
            client.close()


def _watch(server: Served, until: float) -> list[Sample]:
    """Sample memory and open files of the server twice a second."""
    samples, began = [], time.monotonic()
    with tqdm(total=round(until - began), unit="s", desc="load", file=sys.stderr) as bar:
        while (now := time.monotonic()) < until:
            samples.append(Sample(now - began, server.memory(), server.descriptors(), server.segments()))
            bar.set_postfix_str(f"{samples[-1].memory:.0f} MiB, {samples[-1].descriptors} files")
            bar.update(min(round(now - began), bar.total) - bar.n)
            time.sleep(TICK)
        bar.update(bar.total - bar.n)
    return samples


if __name__ == "__main__":
    sys.exit(main())

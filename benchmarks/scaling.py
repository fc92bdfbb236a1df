"""How throughput grows with replicas: a simulation, checked against one and two replicas that are measured here.

``python -m benchmarks.scaling`` measures what one request costs client, server process and engine while it is alone,
then the throughput of one and of two replicas under load, and compares both with the simulation. With ``--only table``
it prints the tables of docs/scaling.md from the committed figures, and ``--page docs/scaling.md`` replaces those of the
page. Linux only.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import os
import re
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.report import RESULTS, machine, processor, table, write_json
from benchmarks.load.cases import ARTIFACTS, NUM_CLASSES, Case, Size, inputs_of
from examples.service import export_once
from tests.processes import nothing_left
from tests.served import Served, processes, serving
from yolo_assigner.serve.client import AssignerClient

CASE = Case("loss", Size(2, 30, 320, 320), "binary")
OUTPUTS = ("loss", "image_sums")
QUIET = ("--threads", "1", "--log-level", "warning")
CLIENTS = 6  # for two cores: more than can be served at once
TICKS = os.sysconf("SC_CLK_TCK")
SPAWN = multiprocessing.get_context("spawn")
SETTLED = 0.2  # share of the simulated requests that does not count
# A training job: images of 640 x 640 pixels, 80 classes, 30 boxes each, 16 images a step, one step in so many seconds.
IMAGES, ANCHORS, CLASSES, REG_MAX, BOXES, STEP_SECONDS = 16, 8400, 80, 16, 30, 0.25
FLOAT = 4  # bytes
TRUTH = IMAGES * BOXES * (8 + 4 * FLOAT + 1)  # bytes of labels, boxes and flags
WORKERS = (8, 32, 128, 512)
GIGABIT = 1e9 / 8  # bytes a second
LINKS = (1, 10, 25, 200)  # Gbit/s
HOST_CORES, ENGINE_MS = 64, (1.0, 5.0, 20.0)
HOSTS = ((1, 25), (8, 25), (8, 200))  # GPUs with a replica each, and Gbit/s of the network


class Costs(NamedTuple):
    """What one request takes.

    Attributes:
        client: Seconds of a core, if the client runs on the same host; else 0.
        server: Seconds of a core in the HTTP process, of which each replica has one.
        engine: Seconds in the engine, which computes one request at a time.
        nbytes: Bytes on the network, both ways.
    """

    client: float
    server: float
    engine: float
    nbytes: float = 0.0


class Host(NamedTuple):
    """What requests share.

    Attributes:
        cores: Cores of the host.
        replicas: Replicas of the service.
        link: Bytes a second of the network; None: it costs nothing.
        engines_need_cores: Whether engines compute on these cores, and not on GPUs.
    """

    cores: int
    replicas: int
    link: float | None = None
    engines_need_cores: bool = True


class Resource:
    """Something that a number of requests can have at one time, first come first served."""

    def __init__(self, places: int) -> None:
        self.free = places
        self.waiting: deque[Process] = deque()


class Take(NamedTuple):
    """Wait for a place."""

    resource: Resource


class Give(NamedTuple):
    """Give a place back."""

    resource: Resource


Step = Take | Give | float  # a number is seconds that pass
Process = Generator[Step, None, None]


def simulate(costs: Costs, host: Host, workers: int, think: float = 0.0, requests: int = 4000) -> float:
    """Requests a second of workers that each send the next request some time after the last answer.

    Args:
        costs: Of one request.
        host: What they share.
        workers: Number of workers.
        think: Seconds between an answer and the next request.
        requests: Number of requests to simulate.
    """
    cores, link = Resource(host.cores), Resource(1)
    replicas = [(Resource(1), Resource(1)) for _ in range(host.replicas)]
    ended: list[float] = []
    clock = _Clock()

    def worker(number: int) -> Process:
        yield think * number / workers  # they do not begin together
        while True:
            http, engine = replicas[number % len(replicas)] if workers < len(replicas) else _idlest(replicas)
            yield from _spend(costs.client, [cores])
            yield from _spend(costs.nbytes / host.link if host.link else 0.0, [link])
            yield from _spend(costs.server, [http, cores])
            yield from _spend(costs.engine, [engine, cores] if host.engines_need_cores else [engine])
            ended.append(clock.now)
            yield think

    clock.run([worker(number) for number in range(workers)], lambda: len(ended) >= requests)
    settled = int(SETTLED * len(ended))
    return (len(ended) - settled) / (ended[-1] - ended[settled - 1])


class _Clock:
    """Runs processes in simulated time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int]] = []
        self._due: dict[int, Process] = {}
        self._count = 0

    def run(self, starting: Iterable[Process], done: Any) -> None:
        for process in starting:
            self._after(0.0, process)
        while not done():
            self.now, number = heapq.heappop(self._events)
            self._go_on(self._due.pop(number))

    def _after(self, seconds: float, process: Process) -> None:
        self._count += 1
        self._due[self._count] = process
        heapq.heappush(self._events, (self.now + seconds, self._count))

    def _go_on(self, process: Process) -> None:
        """Run a process until time has to pass, or it has to wait."""
        for step in process:
            match step:
                case Take(resource) if resource.free:
                    resource.free -= 1
                case Take(resource):
                    resource.waiting.append(process)
                    return
                case Give(resource) if resource.waiting:
                    self._after(0.0, resource.waiting.popleft())
                case Give(resource):
                    resource.free += 1
                case seconds:
                    self._after(seconds, process)
                    return


def _spend(seconds: float, resources: Sequence[Resource]) -> Process:
    """Take resources in turn, let time pass, give them back."""
    for resource in resources:
        yield Take(resource)
    yield seconds
    for resource in resources:
        yield Give(resource)


def _idlest(replicas: Sequence[tuple[Resource, Resource]]) -> tuple[Resource, Resource]:
    """The replica for which the fewest requests wait."""
    return min(replicas, key=lambda pair: sum(len(one.waiting) - one.free for one in pair))


def main() -> int:
    """Measure, compare, write the JSON, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--only", choices=("table",), help="measure nothing")
    parser.add_argument("--page", type=Path, help="replace the tables of this page")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="models of 80 classes; exported if missing")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    if options.only is None:
        export_once(options.artifacts, NUM_CLASSES, ("loss",))
        with nothing_left():
            measured = measure(options.artifacts, options.seconds)
        write_json(options.out, measured)
    points = json.loads(options.out.read_text(encoding="utf-8"))["points"]
    tables = [job_table(), points_table([Point(**point) for point in points]), limits_table(), host_table()]
    print("\n\n".join(tables))
    if options.page:
        replace_tables(options.page, tables)
    return 0


def replace_tables(page: Path, tables: Sequence[str]) -> None:
    """Put tables in the place of those that have the same head.

    Raises:
        ValueError: The page has no table, or several, with such a head.
    """
    text = page.read_text(encoding="utf-8")
    for one in tables:
        head = one.partition("\n")[0]
        text, count = re.subn(rf"^{re.escape(head)}\n(\|.*(\n|$))*", lambda _, one=one: f"{one}\n", text, flags=re.M)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{page} has {count} tables with the head {head!r}; it needs one to replace")
    page.write_text(text, encoding="utf-8")


class Point(NamedTuple):
    """Throughput of a number of replicas.

    Attributes:
        replicas: Their number.
        measured: Requests a second.
        simulated: Likewise.
    """

    replicas: int
    measured: float
    simulated: float


def points_table(points: Sequence[Point]) -> str:
    """Measured beside simulated throughput."""
    rows = [(p.replicas, f"{p.measured:.1f}", f"{p.simulated:.1f}", f"{p.simulated / p.measured:.2f}") for p in points]
    return table(("replicas", "requests/s, measured", "simulated", "ratio"), rows)


def measure(artifacts: Path, seconds: float) -> dict[str, Any]:
    """Costs of a request that is alone, and throughput of one and of two replicas beside the simulated one."""
    with serving(artifacts, *QUIET) as one:
        costs = costs_of(one, seconds)
    points = []
    for replicas in (1, 2):
        with ExitStack() as stack:
            servers = [stack.enter_context(serving(artifacts, *QUIET)) for _ in range(replicas)]
            measured = rate_of([server.port for server in servers], CLIENTS, seconds)
        simulated = simulate(costs, Host(len(os.sched_getaffinity(0)), replicas), CLIENTS)
        points.append(Point(replicas, measured, simulated)._asdict())
    host = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), **machine()}
    return {"machine": host, "case": CASE.name, "clients": CLIENTS, "costs": costs._asdict(), "points": points}


def costs_of(server: Served, seconds: float) -> Costs:
    """Processor time of one client's requests in the client, the server process and the engine process."""
    inputs = inputs_of(CASE, 0)
    pids = processes(server.process.pid)
    with AssignerClient(f"localhost:{server.port}") as client:
        client.infer(CASE.model, inputs, OUTPUTS)
        before, own, count = [spent(pid) for pid in pids], time.process_time(), 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            client.infer(CASE.model, inputs, OUTPUTS)
            count += 1
        own = time.process_time() - own
    http, engine = (spent(pid) - began for pid, began in zip(pids, before, strict=True))
    return Costs(own / count, http / count, engine / count, float(sum(array.nbytes for array in inputs.values())))


def spent(pid: int) -> float:
    """Processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rate_of(ports: Sequence[int], clients: int, seconds: float) -> float:
    """Requests a second of clients that send one after the other, each to one of the ports."""
    begun, ended, counts = SPAWN.Barrier(clients + 1), SPAWN.Event(), SPAWN.SimpleQueue()
    running = [
        SPAWN.Process(target=_client, args=(ports[number % len(ports)], begun, ended, counts))
        for number in range(clients)
    ]
    for one in running:
        one.start()
    begun.wait()
    began = time.monotonic()
    time.sleep(seconds)
    ended.set()
    length = time.monotonic() - began
    total = sum(counts.get() for _ in running)
    for one in running:
        one.join()
    return float(total / length)


def _client(port: int, begun: Any, ended: Event, counts: Any) -> None:
    inputs = inputs_of(CASE, 0)
    count = 0
    with AssignerClient(f"localhost:{port}") as client:
        client.infer(CASE.model, inputs, OUTPUTS)
        begun.wait()
        while not ended.is_set():
            client.infer(CASE.model, inputs, OUTPUTS)
            count += 1
    counts.put(count)


class Way(NamedTuple):
    """One way to send a step of a training job.

    Attributes:
        name: For the table.
        moved: Bytes of all its requests and replies.
        requests: Number of its requests.
    """

    name: str
    moved: float
    requests: int = 1


def ways() -> list[Way]:
    """The ways to send a step: raw maps, scores and boxes, or only what an assignment needs, as measured."""
    maps = IMAGES * ANCHORS * (4 * REG_MAX + CLASSES) * FLOAT
    predictions = IMAGES * ANCHORS * (CLASSES + 4) * FLOAT
    # COMPACT outputs of the assigner: index (8 bytes), flag and weight of each anchor.
    targets = IMAGES * ANCHORS * (8 + 1 + FLOAT)
    thin = json.loads((RESULTS / "transport_thin.json").read_text(encoding="utf-8"))["batches"]["trees"]
    apart = [Way("thin, an image a request", 1e6 * thin["apart"]["megabytes"], IMAGES)] if "apart" in thin else []
    return [
        Way("raw maps, the loss back", maps + TRUTH),
        Way("scores and boxes", predictions + TRUTH + targets),
        Way("thin", 1e6 * thin["default"]["megabytes"]),
        *apart,
    ]


def job_table() -> str:
    """Bytes of training jobs, and the network that they need."""
    rows = []
    for way in ways():
        worker = way.moved / STEP_SECONDS
        totals = [_digits(workers * worker / GIGABIT) for workers in WORKERS]
        rows.append((way.name, way.requests, _digits(way.moved / 1e6), _digits(worker / 1e6), *totals))
    head = ("a step as", "requests", "MB", "MB/s of a worker", *(f"{n} workers, Gbit/s" for n in WORKERS))
    return table(head, rows)


def _digits(value: float) -> str:
    """Three digits, never with an exponent of ten."""
    return f"{float(f'{value:.3g}'):g}"


def http_seconds(nbytes: float) -> float:
    """Time of the HTTP process for a request, by the line through two requests that ``benchmarks.transport`` measured.

    The client's share is in it, so a process with its clients elsewhere is somewhat faster.
    """
    times = json.loads((RESULTS / "transport.json").read_text(encoding="utf-8"))["times"]
    small, large = ((1e6 * row["megabytes"], row["infer_ms"] / 1000) for row in (times["5 MB"], times["77 MB"]))
    slope = (large[1] - small[1]) / (large[0] - small[0])
    return float(small[1] + slope * (nbytes - small[0]))


def step_seconds(way: Way) -> float:
    """Time of one HTTP process for a step."""
    return way.requests * http_seconds(way.moved / way.requests)


def limits_table() -> str:
    """Most steps a second that networks carry, and that one HTTP process takes."""
    rows = [
        (
            way.name,
            *(f"{gigabits * GIGABIT / way.moved:.0f}" for gigabits in LINKS),
            f"{1 / step_seconds(way):.0f}",
        )
        for way in ways()
    ]
    return table(("a step as", *(f"{gigabits} Gbit/s carry" for gigabits in LINKS), "an HTTP process takes"), rows)


def host_table() -> str:
    """Simulated steps a second of hosts with GPUs, for engines of several speeds and 512 workers."""
    rows = []
    for way in ways():
        http = step_seconds(way)
        for milliseconds in ENGINE_MS:
            cost = Costs(0.0, http, milliseconds / 1000, way.moved)
            rates = [
                simulate(cost, Host(HOST_CORES, replicas, gigabits * GIGABIT, False), WORKERS[-1], STEP_SECONDS)
                for replicas, gigabits in HOSTS
            ]
            rows.append((way.name, f"{milliseconds:g}", *(f"{rate:.0f}" for rate in rates)))
    return table(("a step as", "engine, ms", *(f"{n} GPU, {gigabits} Gbit/s" for n, gigabits in HOSTS)), rows)


if __name__ == "__main__":
    sys.exit(main())

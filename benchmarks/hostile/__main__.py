"""Mutated requests at a real server, very many of them: a refusal or the right answer each time, and no trace left.

``python -m benchmarks.hostile``. Every answer of 200 is compared to the bit with ONNX Runtime without a server, and a
neighbour on a connection of its own asks the same good requests all the while. What was answered wrongly is kept in a
file, ``--replay FILE`` sends it again. Before that, callers that do next to nothing; after it, what fits and what does
not fit the OpenAPI document, by schemathesis. Then servers of their own: one whose log nobody reads, and two in a
control group of 600 MiB, where one can be made. Exit code 1: something was wrong. Linux only.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tqdm import trange

from benchmarks.hostile.document import fuzz_document
from benchmarks.hostile.neighbour import Neighbour
from benchmarks.hostile.report import Report
from examples.service import export_once
from tests.control_group import memory_group
from tests.serve.hostile.framing import attack, carry_out
from tests.serve.hostile.judge import Judge
from tests.serve.hostile.mutations import KINDS
from tests.serve.hostile.requests import MODELS, NUM_CLASSES, Request, good_requests, large_reply
from tests.serve.hostile.shared_regions import PREFIX, objects, shared
from tests.serve.hostile.slow_callers import (
    Slow,
    ask,
    dripping_bodies,
    sent_ahead,
    sent_ahead_unread,
    slow_bodies,
    slow_heads,
    slow_readers,
)
from tests.serve.hostile.surroundings import GROUP_BYTES, SHORT, short_memory, unread_log
from tests.serve.hostile.wire import NoReplyError, Wire
from tests.served import Served, serving

MIB = 2**20
ARTIFACTS = Path("out/hostile")
RESULTS = Path(__file__).parents[1] / "results" / "hostile.json"
PLACES, TIMEOUT = 16, 2.0
UNREAD = 5000  # refused requests whose log lines nobody reads, of 2 KB each
CALLERS = 6  # where memory is short
WORDS = (
    *("--threads", "1", "--max-requests", str(PLACES), "--client-timeout", str(TIMEOUT), "--log-level", "error"),
    *("--max-request-bytes", str(4 * MIB), "--max-work-bytes", str(64 * MIB), "--shared-memory", PREFIX),
)
WARM_UP = 200  # bombs at the beginning: what engines and allocators keep of their largest task, they have then taken
LOOKS = 1000  # requests between two looks at the server
WEIGHTS = {name: weight for name, (_, weight) in KINDS.items()} | {"shared": 1.0, "framing": 2.0}


def main() -> int:
    """Run, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--examples", type=int, default=100, help="of each route of the OpenAPI document")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="models; exported if missing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send what was answered wrongly once more")
    options = parser.parse_args()
    export_once(options.artifacts, NUM_CLASSES, MODELS)
    if options.replay:
        return replay(options.replay, options.artifacts)
    notes = options.artifacts / "notes"
    notes.mkdir(exist_ok=True)
    print(f"seed {options.seed}", flush=True)
    report = Report(options.seed)
    judge = Judge(options.artifacts)
    with serving(options.artifacts, *WORDS) as server:
        check_good(server.port, judge)
        for slow in slowly(server.port):
            report.slow(slow)
        with objects(server.port) as judge.regions, Neighbour(server.port, judge) as neighbour:
            assault(server, judge, report, options.requests, notes)
        report.neighbour(neighbour)
        report.document(fuzz_document(server.port, options.examples, options.seed, notes))
        report.end(server)
        report.ended_with(server.stop())
    report.slow(unread_log(options.artifacts, UNREAD))
    with_short_memory(options.artifacts, judge, report)
    options.out.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    print(report.table())
    return 1 if report.faults else 0


def check_good(port: int, judge: Judge) -> None:
    """See that good requests are answered at all, as they are not when a model could not be loaded.

    Raises:
        RuntimeError: One is not.
    """
    for request in good_requests():
        reply = ask(port, request)
        if (fault := judge.fault(request, reply)) is not None or reply.status != 200:
            raise RuntimeError(f"{request.path} before anything hostile: {fault or reply.body[:500]!r}")


def slowly(port: int) -> list[Slow]:
    """Callers that do next to nothing, kind by kind."""
    good = good_requests()[0]
    return [
        slow_bodies(port, good, PLACES, TIMEOUT),
        dripping_bodies(port, good, PLACES, TIMEOUT),
        slow_heads(port, good, 200, TIMEOUT),
        slow_readers(port, large_reply(), 4, TIMEOUT),
        sent_ahead(port, 4, 5000),
        sent_ahead_unread(port, 4, TIMEOUT),
    ]


def with_short_memory(artifacts: Path, judge: Judge, report: Report) -> None:
    """Servers in a control group, one after the other."""
    with ExitStack() as stack:
        try:
            group = stack.enter_context(memory_group(GROUP_BYTES))
        except OSError as error:
            report.left_out(str(error))
            return
        for short in SHORT:
            report.slow(short_memory(artifacts, judge, group, short, CALLERS))


def assault(server: Served, judge: Judge, report: Report, requests: int, folder: Path) -> None:
    """Send the mutated requests, one after the other; each is made anew from the seed and its number."""
    for number in trange(requests, desc="hostile", file=sys.stderr, smoothing=0.05):
        if number == WARM_UP:
            report.begin(server)
        rng = random.Random(f"{report.seed}:{number}")  # noqa: S311
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0] if number >= WARM_UP else "bombs"
        began = time.monotonic()
        sent, statuses, fault = (
            _framed(server.port, rng, judge) if kind == "framing" else _sent(server.port, kind, rng, judge)
        )
        report.add(kind, number, statuses, time.monotonic() - began, fault and f"{kind}, number {number}: {fault}")
        if fault is not None:
            keep(folder / f"fault-{report.seed}-{number}.json", kind, sent, fault)
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.process.poll()} after {kind}, number {number}")
        if number % LOOKS == 0:
            report.look(server)


def _sent(port: int, kind: str, rng: random.Random, judge: Judge) -> tuple[bytes, list[int], str | None]:
    request: Request = shared(rng) if kind == "shared" else KINDS[kind][0](rng)
    whole = request.head() + request.body
    try:
        with Wire(port) as wire:
            wire.write([whole])
            reply = wire.reply()
    except NoReplyError as error:
        return whole, [], str(error)
    return whole, [reply.status], judge.fault(request, reply)


def _framed(port: int, rng: random.Random, judge: Judge) -> tuple[bytes, list[int], str | None]:
    what = attack(rng)
    statuses, fault = carry_out(port, what, judge.fault)
    sent = b"".join(piece for piece in what.pieces if isinstance(piece, bytes))
    return sent, statuses, fault and f"{what.name}: {fault}"


def keep(path: Path, kind: str, sent: bytes, fault: str) -> None:
    """Write a request down, so that it can be sent again."""
    document = {"kind": kind, "fault": fault, "sent": base64.b64encode(sent).decode()}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def replay(path: Path, artifacts: Path) -> int:
    """Send a kept request to a fresh server and show what comes back."""
    document = json.loads(path.read_text(encoding="utf-8"))
    print(f"{document['kind']}: {document['fault']}")
    with serving(artifacts, *WORDS[:-2], "--shared-memory", PREFIX) as server, Wire(server.port) as wire:
        wire.write([base64.b64decode(document["sent"])])
        reply = wire.reply()
        print(reply.status, reply.body[:2000])
        return 0 if ask(server.port, good_requests()[0]).status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())

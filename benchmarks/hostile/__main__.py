"""Many mutated requests at a real server: each gets a refusal or the right answer, and leaves no trace.

``python -m benchmarks.hostile``. Every result is compared to the bit with ONNX Runtime without a server, while a
neighbour on a connection of its own sends well-formed requests. A request that was answered wrongly is kept in a file;
``--replay FILE`` sends it again. Slow callers come before the mutated requests; after them schemathesis sends requests
made from the OpenAPI document. Then come a server whose log is not read, and two in a control group of 600 MiB where
one can be made. Exit code 1: something was wrong. Linux only.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import trange

from benchmarks.common.report import RESULTS, write_json
from benchmarks.hostile.report import Report
from examples.service import export_once
from tests.control_group import memory_group
from tests.serve.hostile.framing import attack, carry_out
from tests.serve.hostile.judge import Judge
from tests.serve.hostile.mutations import KINDS
from tests.serve.hostile.requests import MODELS, NUM_CLASSES, Request, ask, good_requests, large_reply
from tests.serve.hostile.shared_regions import PREFIX, objects, shared
from tests.serve.hostile.slow_callers import (
    Slow,
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
PLACES, TIMEOUT = 16, 2.0
UNREAD = 5000  # refused requests whose log lines, 2 KB each, are not read
# Large requests at a time where memory is short. The bodies of one more fill the 600 MiB without any engine: then the
# server is all that the system can kill, which is what its warning at the start says.
CALLERS = 5
WORDS = (
    *("--threads", "1", "--max-requests", str(PLACES), "--client-timeout", str(TIMEOUT), "--log-level", "error"),
    *("--max-request-bytes", str(4 * MIB), "--max-work-bytes", str(64 * MIB), "--shared-memory", PREFIX),
)
# 501 and the like are answers, not failures.
CONFIGURATION = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "4xx", "501", "503", "504"]\n'
CHECKS = ",".join((
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance"),
))  # fmt: skip
# Loads of each model at the beginning. Freed sessions leave gaps in the allocator's arenas: the engine process grows by
# 100 MiB over some 60 loads and no further, as 300 of them have shown.
LOADS = 20
WARM_UP = 200  # bombs at the beginning: afterwards runners and allocators hold all the memory that they keep
PAUSE = 0.01  # seconds between requests of the neighbour
LOOKS = 1000  # requests between two samples of the server
WEIGHTS = {name: weight for name, (_, weight) in KINDS.items()} | {"shared": 1.0, "framing": 2.0}


def main() -> int:
    """Run, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--examples", type=int, default=100, help="of each route of the OpenAPI document")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="models; exported if missing")
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile.json")
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
        reload_models(server.port)
        for slow in slow_callers(server.port):
            report.add_slow(slow)
        with objects(server.port) as judge.regions, neighbour(server.port, judge, report):
            assault(server, judge, report, options.requests, notes)
        fuzz_document(server.port, options.examples, report, notes)
        report.end(server)
    report.add_slow(unread_log(options.artifacts, UNREAD))
    with_short_memory(options.artifacts, judge, report)
    write_json(options.out, report.as_json())
    print(report.table())
    return 1 if report.faults else 0


def check_good(port: int, judge: Judge) -> None:
    """Check that well-formed requests get results, which they do not when a model could not be loaded.

    Raises:
        RuntimeError: One does not.
    """
    for request in good_requests():
        reply = ask(port, request)
        if (fault := judge.fault(request, reply)) is not None or reply.status != 200:
            raise RuntimeError(f"{request.path} before anything hostile: {fault or reply.body[:500]!r}")


def reload_models(port: int) -> None:
    """Load every model again and again, so that the process has grown as far as loading makes it.

    Raises:
        RuntimeError: A model was not loaded.
    """
    for model in MODELS * LOADS:
        reply = ask(port, Request(f"/v2/repository/models/{model}/load", (), b""))
        if reply.status != 200:
            raise RuntimeError(f"{model} was not loaded again: {reply.body[:500]!r}")


def slow_callers(port: int) -> list[Slow]:
    """Run the slow callers, kind by kind."""
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
    """Run servers in a control group, one after the other."""
    with ExitStack() as stack:
        try:
            group = stack.enter_context(memory_group(GROUP_BYTES))
        except OSError as error:
            report.left_out.append(str(error))
            return
        for short in SHORT:
            report.add_slow(short_memory(artifacts, judge, group, short, CALLERS))


@contextmanager
def neighbour(port: int, judge: Judge, report: Report) -> Iterator[None]:
    """Send well-formed requests beside the hostile ones; their answers must stay the same to the bit.

    Args:
        port: Port of the server.
        judge: Checks the first answers; the others are compared with these.
        report: Report to add to.
    """
    over = threading.Event()
    asking = threading.Thread(target=_ask_until, args=(over, port, judge, report), daemon=True)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()


def _ask_until(over: threading.Event, port: int, judge: Judge, report: Report) -> None:
    requests, known = good_requests(), dict[int, bytes]()
    answers, slowest = 0, 0.0
    with Wire(port) as wire:
        while not over.wait(PAUSE):
            place = answers % len(requests)
            request, began = requests[place], time.monotonic()
            wire.write([request.head() + request.body])
            try:
                reply = wire.reply()
            except NoReplyError as error:
                report.faults.append(f"neighbour: {error}")
                return
            answers, slowest = answers + 1, max(slowest, time.monotonic() - began)
            report.neighbour = {"answers": answers, "slowest_seconds": round(slowest, 3)}
            fault = None
            if place not in known:
                known[place] = reply.body
                fault = judge.fault(request, reply) or (None if reply.status == 200 else f"status {reply.status}")
            elif reply.body != known[place]:
                fault = f"another answer than before: {reply.status} {reply.body[:200]!r}"
            if fault is not None:
                report.faults.append(f"neighbour: {fault}")


def assault(server: Served, judge: Judge, report: Report, requests: int, folder: Path) -> None:
    """Send the mutated requests one after the other; the seed and its number determine each."""
    for number in trange(requests, desc="hostile", file=sys.stderr, smoothing=0.05):
        if number == WARM_UP:
            report.begin(server)
        rng = random.Random(f"{report.seed}:{number}")  # noqa: S311
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0] if number >= WARM_UP else "bombs"
        began = time.monotonic()
        sent, statuses, fault = (
            _framed(server.port, rng, judge) if kind == "framing" else _sent(server.port, kind, rng, judge)
        )
        report.add(kind, number, statuses, time.monotonic() - began)
        if fault is not None:
            report.faults.append(f"{kind}, number {number}: {fault}")
            keep(folder / f"fault-{report.seed}-{number}.json", kind, sent, fault)
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.process.poll()} after {kind}, number {number}")
        if number % LOOKS == 0:
            report.sample(server)


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
    """Keep a request in a file for ``--replay``."""
    write_json(path, {"kind": kind, "fault": fault, "sent": base64.b64encode(sent).decode()})


def replay(path: Path, artifacts: Path) -> int:
    """Send a kept request to a fresh server and print the reply."""
    document = json.loads(path.read_text(encoding="utf-8"))
    print(f"{document['kind']}: {document['fault']}")
    with serving(artifacts, *WORDS) as server, Wire(server.port) as wire:
        wire.write([base64.b64decode(document["sent"])])
        reply = wire.reply()
        print(reply.status, reply.body[:2000])
        return 0 if ask(server.port, good_requests()[0]).status == 200 else 1


def fuzz_document(port: int, examples: int, report: Report, folder: Path) -> None:
    """Let schemathesis send valid and invalid requests made from the OpenAPI document.

    Args:
        port: Port of the server.
        examples: Most requests of each route and phase.
        report: Report to add to; its seed seeds schemathesis.
        folder: Folder for the files of schemathesis.
    """
    folder = folder.resolve()
    path, configuration = folder / "schemathesis.json", folder / "schemathesis.toml"
    path.unlink(missing_ok=True)
    configuration.write_text(CONFIGURATION, encoding="utf-8")
    words = ("-n", str(examples), "--seed", str(report.seed), "--checks", CHECKS, "--no-color", "--continue-on-failure")
    files = ("--report", "json", "--report-json-path", str(path), "--generation-database", "none")
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"http://127.0.0.1:{port}/openapi.json",
        *words,
        *files,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if not path.exists():
        report.document = {"requests": 0, "routes": 0}
        report.faults.append(f"schemathesis did not run: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    report.document = {"requests": found["test_cases"]["generated"], "routes": found["operations"]["tested"]}
    if done.returncode:
        report.faults.append(f"schemathesis: {done.stdout[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())

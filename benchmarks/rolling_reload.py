"""A model is exchanged again and again under load: every answer is that of one version, and no request fails.

``python -m benchmarks.rolling_reload --exchanges 20``. Two exports of a model whose answers differ take turns in the
folder of a running server, which is told so by ``POST /v2/repository/models/NAME/load`` and by SIGHUP in turn. Answers
are compared to the bit with those of a server that never had another version. A request that is sent after an exchange
is over must get the new version, one that was answered before it began the old one. In the middle a damaged file is put
there: the server refuses it and goes on with what it has. Exit code 1: something was wrong. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from tqdm import trange

from benchmarks.load.cases import NUM_CLASSES, Case
from benchmarks.load.client import Answer, Client, Plan, Prepared, Tally, run_all
from benchmarks.load.prepare import prepare
from benchmarks.load.processes import ARTIFACTS, FORK, NICENESS, fork
from benchmarks.load.report import milliseconds
from benchmarks.rolling_restart import ROLLING
from examples.service import export_once
from tests.served import Served, serving

RESULTS = Path(__file__).parent / "results" / "rolling_reload.json"
OTHER_ARTIFACTS = Path("out/reload")
OTHER_OPTIONS = ("--gains", "1,2,3")
MODEL = "loss"
VERSIONS = "AB"
KEY = "only-for-rolling-reload"
EXCHANGE_SECONDS = 120.0
CALM_SECONDS = 0.3  # between two exchanges, in which only one version may answer
Expected = Mapping[Case, tuple[bytes, ...]]  # the replies of the versions


class Seen(NamedTuple):
    """An answer of the model that is exchanged.

    Attributes:
        began: When its request was begun.
        ended: When all of it was there.
        version: Place in ``VERSIONS`` of the version that gave it.
    """

    began: float
    ended: float
    version: int


class Exchange(NamedTuple):
    """One version took the place of the other.

    Attributes:
        how: What told the server: ``load`` or ``SIGHUP``.
        began: Before the server was told.
        ended: When the server had said, or shown, that it is done.
        version: Place in ``VERSIONS`` of the new one.
    """

    how: str
    began: float
    ended: float
    version: int


class VersionClient(Client):
    """A client that notes which version each answer is from.

    Args:
        plan: What to do.
        owner: Number of the connection.
        tally: Where to count.
        expected: The answers of the versions to each case.
        seen: Where to note.
    """

    def __init__(self, plan: Plan, owner: int, tally: Tally, expected: Expected, seen: list[Seen]) -> None:
        super().__init__(plan, owner, tally)
        self._expected, self._seen = expected, seen

    def fault(self, prepared: Prepared, answer: Answer) -> str | None:
        """None when it is the answer of a version."""
        replies = self._expected.get(prepared.case)
        if replies is None:  # of a model that stays
            return super().fault(prepared, answer)
        if answer.body not in replies:
            return "the result of neither version"
        self._seen.append(Seen(answer.began, time.perf_counter(), replies.index(answer.body)))
        return None


def main() -> int:
    """Run, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolling_reload", description=__doc__)
    parser.add_argument("--exchanges", type=int, default=20)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="version A and other models, of 80 classes")
    parser.add_argument("--other-artifacts", type=Path, default=OTHER_ARTIFACTS, help="version B of the model")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    export_once(options.artifacts, NUM_CLASSES, ("assigner", "loss", "loss_grad"))
    export_once(options.other_artifacts, NUM_CLASSES, (MODEL,), OTHER_OPTIONS)
    folders = (options.artifacts, options.other_artifacts)
    results = exchange_under_load(folders, MODEL, ROLLING, options.exchanges, options.connections)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    names = ("exchanges", "requests", "A", "B", "neither", "untimely")
    print(f"\n| {' | '.join(names)} | failed | exchange p50, ms | reply p50, ms | p99 | max |\n{'| --- ' * 11}|")
    times = [results["exchange_ms"]["p50"], *(results["reply_ms"][name] for name in ("p50", "p99", "max"))]
    print("| " + " | ".join(map(str, (*(results[name] for name in names), len(results["failed"]), *times))) + " |")
    for text in results["failed"][:20]:
        print(text)
    return 1 if results["failed"] else 0


def exchange_under_load(
    folders: Sequence[Path], model: str, cases: Sequence[Case], exchanges: int, connections: int
) -> dict[str, Any]:
    """Exchange a model so many times while clients send cases.

    Args:
        folders: Version A with all other models that cases ask for, and version B.
        model: The one that is exchanged.
        cases: What clients ask for; nothing in shared memory.
        exchanges: How often.
        connections: Clients, each with one connection.

    Returns:
        Numbers of exchanges, requests and answers of each version, and what failed.
    """
    affected = [case for case in cases if case.model == model]
    with serving(folders[1]) as other:
        replies = {prepared.case: prepared.reply for prepared in prepare(other.port, affected, {})}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(folders[0], Path(scratch) / "artifacts"))
        (Path(scratch) / "keys.txt").write_text(f"{KEY}\n", encoding="ascii")
        words = ("--admin-key-file", str(Path(scratch) / "keys.txt"), "--log-level", "error")
        log = Path(scratch) / "log.txt"
        with log.open("w") as errors, serving(folder, *words, errors=errors.fileno()) as server:
            # First those that the other server had, too: a case's place decides its values.
            prepared = prepare(server.port, [*affected, *(case for case in cases if case.model != model)], {})
            expected = {one.case: (one.reply, replies[one.case]) for one in prepared if one.case in replies}
            stop = FORK.Event()
            plan = Plan(server.port, prepared, 0, {}, lambda: not stop.is_set(), plain=True)
            clients = fork(_work, plan, expected, connections)
            operator = Operator(server, log, folder, folders, model, prepared[0], expected)
            done = operator.run(exchanges)
            stop.set()
            tally, seen = clients.recv()
            code = server.stop()
    faults = operator.faults + ([f"the server ended with code {code}"] if code else [])
    return _summary(tally, seen, done, faults)


class Operator:
    """Puts files into the folder of a server and tells it to load them.

    Args:
        server: The server.
        log: File of its log.
        folder: Its artifacts, to be written to.
        sources: Folders with the versions.
        model: The model that is exchanged.
        probe: Asked to see which version the server has.
        expected: The answers of the versions.

    Attributes:
        faults: What went wrong.
    """

    def __init__(
        self,
        server: Served,
        log: Path,
        folder: Path,
        sources: Sequence[Path],
        model: str,
        probe: Prepared,
        expected: Expected,
    ) -> None:
        self.faults: list[str] = []
        self._server, self._log, self._folder, self._sources, self._model = server, log, folder, sources, model
        self._probe, self._replies = probe, expected[probe.case]

    def run(self, exchanges: int) -> list[Exchange]:
        """Exchange the versions, half of the times by each way, with damaged files in the middle."""
        done = []
        for number in trange(exchanges, desc="exchanges", file=sys.stderr):
            if number == exchanges // 2:
                self._try_damaged(number % 2)
            time.sleep(CALM_SECONDS)
            done.append(self._exchange(1 - number % 2, "SIGHUP" if number % 4 > 1 else "load"))
        time.sleep(CALM_SECONDS)
        return done

    def _exchange(self, version: int, how: str) -> Exchange:
        self._put(version)
        began = time.perf_counter()
        if how == "load":
            status, body = self._load()
            if status != 200:
                self.faults.append(f"an exchange was answered {status} {body[:200]!r}")
        else:
            self._server.process.send_signal(signal.SIGHUP)
            _wait_for(lambda: self._version() == version)
        ended = time.perf_counter()
        if self._version() != version:
            self.faults.append(f"after an exchange by {how} the server answers with the version from before")
        return Exchange(how, began, ended, version)

    def _try_damaged(self, version: int) -> None:
        """The first half of a model file: refused, and the version in use stays."""
        self._put(version, damaged=True)
        status, body = self._load()
        if status != 400 or list(json.loads(body)) != ["error"]:
            self.faults.append(f"a damaged file was answered {status} {body[:200]!r}")
        self._server.process.send_signal(signal.SIGHUP)
        # Models are reloaded in turn: until the log says so, the damaged file may not have been read.
        if not _wait_for(lambda: f"model {self._model} not reloaded" in self._log.read_text()):
            self.faults.append("SIGHUP with a damaged file: the log does not say that it is refused")
        time.sleep(CALM_SECONDS)
        if self._version() != version:
            self.faults.append("after a damaged file the server no longer has the version from before")

    def _put(self, version: int, *, damaged: bool = False) -> None:
        """The model's file and then its contract, each whole at once."""
        for name in (f"{self._model}.onnx", f"{self._model}.json"):
            data = (self._sources[version] / name).read_bytes()
            new = self._folder / f"{name}.new"
            new.write_bytes(data[: len(data) // 2] if damaged and name.endswith(".onnx") else data)
            new.replace(self._folder / name)

    def _load(self) -> tuple[int, bytes]:
        path = f"/v2/repository/models/{self._model}/load"
        return self._send(path, b"{}", {"Authorization": f"Bearer {KEY}"})

    def _version(self) -> int:
        """Place of the version that the server has; -1: neither."""
        payload = self._probe.payload
        _, *lines = payload.head.decode().strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        _, body = self._send(payload.head.split()[1].decode(), b"".join(payload.body), headers)
        return self._replies.index(body) if body in self._replies else -1

    def _send(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        with closing(HTTPConnection("127.0.0.1", self._server.port, timeout=EXCHANGE_SECONDS)) as connection:
            connection.request("POST", path, body, headers)
            reply = connection.getresponse()
            return reply.status, reply.read()


def _wait_for(condition: Callable[[], bool]) -> bool:
    """Wait until something is so; False: it was not for too long."""
    deadline = time.perf_counter() + EXCHANGE_SECONDS
    while not (met := condition()) and time.perf_counter() < deadline:
        time.sleep(0.01)
    return met


def _work(plan: Plan, expected: Expected, connections: int, results: Connection) -> None:
    os.nice(NICENESS)
    tally, seen = Tally(), list[Seen]()
    uvloop.run(run_all([VersionClient(plan, owner, tally, expected, seen) for owner in range(connections)]))
    results.send((tally, seen))


def untimely(answer: Seen, exchanges: Sequence[Exchange]) -> bool:
    """Whether an answer is from a version that was gone when it was asked for, or not yet there.

    Args:
        answer: Which.
        exchanges: All, in their order; before the first one the server had version A.
    """
    over = [exchange.version for exchange in exchanges if exchange.ended <= answer.began]
    meanwhile = {
        exchange.version for exchange in exchanges if answer.began < exchange.ended and exchange.began < answer.ended
    }
    return answer.version not in meanwhile | {over[-1] if over else 0}


def _summary(tally: Tally, seen: Sequence[Seen], exchanges: Sequence[Exchange], faults: list[str]) -> dict[str, Any]:
    late = sum(untimely(answer, exchanges) for answer in seen)
    answers = Counter(VERSIONS[answer.version] for answer in seen)
    failed = (
        faults
        + tally.wrong
        + tally.lost
        + ([f"{late} answers are from another version than the server had"] if late else [])
    )
    times = {"reply_ms": tally.replies, "exchange_ms": [exchange.ended - exchange.began for exchange in exchanges]}
    return {
        "exchanges": len(exchanges),
        "requests": sum(tally.outcomes.values()) + len(tally.lost),
        **{version: answers[version] for version in VERSIONS},
        "neither": sum("neither" in text for text in tally.wrong),
        "untimely": late,
        "failed": failed,
        **{
            name: {key: value for key, value in milliseconds(values).items() if key != "over"}
            for name, values in times.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())

"""A model is exchanged many times under load: every answer is that of one version, and no request fails.

``python -m benchmarks.rolling_reload --exchanges 20``. Two exports of a model whose answers differ take turns in the
folder of a running server, which reloads on ``POST /v2/repository/models/NAME/load`` and on SIGHUP. Answers are
compared to the bit with those of a server that never had another version. A request sent after an exchange must get the
new version, one answered before it the old one. In between, the server must refuse a damaged file and keep the version
that it has. Exit code 1: something was wrong. Linux only.
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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from tqdm import trange

from benchmarks.common.client import Answer, Payload, connected, json_payload
from benchmarks.common.report import RESULTS, table, write_json
from benchmarks.load.cases import ARTIFACTS, NUM_CLASSES, Case
from benchmarks.load.client import FORK, NICENESS, Client, Plan, Prepared, Tally, fork, run_all
from benchmarks.load.prepare import prepare
from benchmarks.load.report import milliseconds
from benchmarks.rolling_restart import ROLLING
from examples.service import export_once
from tests.serve.hostile.wire import Reply
from tests.served import Served, serving

OTHER_ARTIFACTS = Path("out/reload")
OTHER_OPTIONS = ("--gains", "1,2,3")
MODEL = "loss"
VERSIONS = "AB"
KEY = "only-for-rolling-reload"
EXCHANGE_SECONDS = 120.0
CALM_SECONDS = 0.3  # time between two exchanges, in which only one version may answer
Expected = Mapping[Case, tuple[bytes, ...]]  # the replies of the versions


class Seen(NamedTuple):
    """An answer of the model that is exchanged.

    Attributes:
        began: When its request was begun.
        ended: When it had been received.
        version: Index in ``VERSIONS`` of the version that gave it.
    """

    began: float
    ended: float
    version: int


class Exchange(NamedTuple):
    """An exchange of one version for the other.

    Attributes:
        how: How the server was told to reload: ``load`` or ``SIGHUP``.
        began: Time before the server was told.
        ended: Time when the server had replied, or answered with the new version.
        version: Index in ``VERSIONS`` of the new version.
    """

    how: str
    began: float
    ended: float
    version: int


class VersionClient(Client):
    """A client that records which version each answer is from.

    Args:
        plan: Instructions.
        owner: Number of the connection.
        tally: Counts to add to.
        expected: Replies of the versions to each case.
        seen: List to append to.
    """

    def __init__(self, plan: Plan, owner: int, tally: Tally, expected: Expected, seen: list[Seen]) -> None:
        super().__init__(plan, owner, tally)
        self._expected, self._seen = expected, seen

    def fault(self, prepared: Prepared, answer: Answer) -> str | None:
        """Tell what is wrong with a result, or None when it is that of a version."""
        replies = self._expected.get(prepared.case)
        if replies is None:  # a model that is not exchanged
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
    parser.add_argument("--out", type=Path, default=RESULTS / "rolling_reload.json")
    options = parser.parse_args()
    export_once(options.artifacts, NUM_CLASSES, ("assigner", "loss", "loss_grad"))
    export_once(options.other_artifacts, NUM_CLASSES, (MODEL,), OTHER_OPTIONS)
    folders = (options.artifacts, options.other_artifacts)
    results = exchange_under_load(folders, MODEL, ROLLING, options.exchanges, options.connections)
    write_json(options.out, results)
    names = ("exchanges", "requests", "A", "B", "neither", "untimely")
    times = (results["exchange_ms"]["p50"], *(results["reply_ms"][name] for name in ("p50", "p99", "max")))
    head = (*names, "failed", "exchange p50, ms", "reply p50, ms", "p99", "max")
    print("\n" + table(head, [(*(results[name] for name in names), len(results["failed"]), *times)]))
    for text in results["failed"][:20]:
        print(text)
    return 1 if results["failed"] else 0


def exchange_under_load(
    folders: Sequence[Path], model: str, cases: Sequence[Case], exchanges: int, connections: int
) -> dict[str, Any]:
    """Exchange a model while clients send cases.

    Args:
        folders: Folder of version A with all other models, and folder of version B.
        model: Name of the model to exchange.
        cases: Requests of the clients, without shared memory.
        exchanges: Number of exchanges.
        connections: Number of clients, each with one connection.

    Returns:
        Numbers of exchanges, requests and answers of each version, and descriptions of what failed.
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
            # The cases of the other server come first here too, because a case's index seeds its values.
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
    """Writes files into the folder of a server and tells it to reload.

    Args:
        server: The server.
        log: File of its log.
        folder: Folder of its models.
        sources: Folders of the versions.
        model: Name of the model to exchange.
        probe: Request that shows which version the server has.
        expected: Replies of the versions.

    Attributes:
        faults: Descriptions of what went wrong.
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
        """Exchange the versions, half of the times in each way, with a damaged file in the middle."""
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
            reply = self._load()
            if reply.status != 200:
                self.faults.append(f"an exchange was answered {reply.status} {reply.body[:200]!r}")
        else:
            self._server.process.send_signal(signal.SIGHUP)
            _wait_for(lambda: self._version() == version)
        ended = time.perf_counter()
        if self._version() != version:
            self.faults.append(f"after an exchange by {how} the server answers with the version from before")
        return Exchange(how, began, ended, version)

    def _try_damaged(self, version: int) -> None:
        """Offer the first half of a model file: it must be refused, and the version in use must stay."""
        self._put(version, damaged=True)
        reply = self._load()
        if reply.status != 400 or list(json.loads(reply.body)) != ["error"]:
            self.faults.append(f"a damaged file was answered {reply.status} {reply.body[:200]!r}")
        self._server.process.send_signal(signal.SIGHUP)
        # Models are reloaded one after the other: before the log says so, the damaged file may not have been read.
        if not _wait_for(lambda: f"model {self._model} not reloaded" in self._log.read_text()):
            self.faults.append("SIGHUP with a damaged file: the log does not say that it is refused")
        time.sleep(CALM_SECONDS)
        if self._version() != version:
            self.faults.append("after a damaged file the server no longer has the version from before")

    def _put(self, version: int, *, damaged: bool = False) -> None:
        """Replace the model's file and then its contract, each atomically."""
        for name in (f"{self._model}.onnx", f"{self._model}.json"):
            data = (self._sources[version] / name).read_bytes()
            new = self._folder / f"{name}.new"
            new.write_bytes(data[: len(data) // 2] if damaged and name.endswith(".onnx") else data)
            new.replace(self._folder / name)

    def _load(self) -> Reply:
        path = f"repository/models/{self._model}/load"
        return self._send(json_payload(path, {}, f"authorization: Bearer {KEY}\r\n"))

    def _version(self) -> int:
        """Index of the version that the server has, or -1."""
        body = self._send(self._probe.payload).body
        return self._replies.index(body) if body in self._replies else -1

    def _send(self, payload: Payload) -> Reply:
        with closing(connected(self._server.port)) as wire:
            wire.write((payload.head, *payload.body))
            return wire.reply()


def _wait_for(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; False when it takes too long."""
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
    """Whether an answer is from a version that was replaced before its request, or not yet loaded at its end.

    Args:
        answer: The answer.
        exchanges: All exchanges, in their order; before the first one the server had version A.
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

"""What a run of ``benchmarks.hostile`` has seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from importlib.metadata import version
from typing import Any

from benchmarks.hostile.document import Fuzzed
from benchmarks.hostile.neighbour import Neighbour
from tests.serve.hostile.slow_callers import Slow
from tests.served import Served

GROWN = 32.0  # MiB that may be more in the end than in the middle: then engines have met their largest tasks
PACKAGES = ("uvicorn", "httptools", "uvloop", "fastapi", "orjson", "onnxruntime", "numpy", "schemathesis")


class Report:
    """Counts.

    Args:
        seed: Of the run.

    Attributes:
        seed: As given.
        faults: What was wrong, at most one line each.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.faults: list[str] = []
        self._statuses: dict[str, Counter[str]] = defaultdict(Counter)
        self._sent: Counter[str] = Counter()
        self._slowest: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        self._slow: list[Slow] = []
        self._server: dict[str, float] = {"memory_peak_mib": 0.0}
        self._memory: list[float] = []
        self._neighbour: dict[str, float] = {}
        self._document: dict[str, int] = {}
        self._left_out: list[str] = []

    def add(self, kind: str, number: int, statuses: list[int], seconds: float, fault: str | None) -> None:
        """One mutated request, or what stood for one on a connection. Status 0: no answer, where that is right."""
        self._sent[kind] += 1
        self._statuses[kind].update(str(status) for status in statuses or (0,))
        self._slowest[kind] = max(self._slowest[kind], (seconds, number))
        if fault is not None:
            self.faults.append(fault)

    def slow(self, slow: Slow) -> None:
        """Callers that did next to nothing."""
        self._slow.append(slow)
        if slow.fault is not None:
            self.faults.append(f"{slow.what}: {slow.fault}")

    def left_out(self, reason: str) -> None:
        """What could not be done on this machine."""
        self._left_out.append(reason)

    def begin(self, server: Served) -> None:
        """The server after the warm-up."""
        self._server |= {"memory_before_mib": server.memory(), "descriptors_before": server.descriptors()}

    def look(self, server: Served) -> None:
        """The server in between."""
        self._memory.append(round(server.memory(), 1))
        self._server["memory_peak_mib"] = max(self._server["memory_peak_mib"], self._memory[-1])

    def end(self, server: Served) -> None:
        """The server when all callers are gone."""
        self.look(server)
        self._server |= {"memory_after_mib": server.memory(), "descriptors_after": server.descriptors()}
        grown = self._server["memory_after_mib"] - self._memory[len(self._memory) // 2]
        opened = self._server["descriptors_after"] - self._server["descriptors_before"]
        if grown > GROWN:
            self.faults.append(f"the server has grown by {grown:.0f} MiB")
        if opened > 0:
            self.faults.append(f"the server has {opened:.0f} more descriptors open than before")

    def ended_with(self, code: int) -> None:
        """The server's exit code when it was told to stop."""
        if code:
            self.faults.append(f"the server ended with code {code}")

    def neighbour(self, neighbour: Neighbour) -> None:
        """The caller with good requests."""
        self.faults += neighbour.faults
        self._neighbour = {"answers": neighbour.answers, "slowest_seconds": round(neighbour.slowest, 3)}

    def document(self, fuzzed: Fuzzed) -> None:
        """Requests made from the OpenAPI document."""
        self.faults += fuzzed.faults
        self._document = {"requests": fuzzed.requests, "routes": fuzzed.routes}

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        kinds = {
            kind: {
                "sent": sent,
                "statuses": dict(sorted(self._statuses[kind].items())),
                "slowest_seconds": round(self._slowest[kind][0], 3),
                "slowest_number": self._slowest[kind][1],
            }
            for kind, sent in sorted(self._sent.items())
        }
        return {
            "versions": {package: version(package) for package in PACKAGES},
            "seed": self.seed,
            "requests": sum(self._sent.values()),
            "kinds": kinds,
            "slow_callers": [slow._asdict() for slow in self._slow],
            "document": self._document,
            "neighbour": self._neighbour,
            "server": {name: round(value, 1) for name, value in self._server.items()},
            "memory_mib": self._memory,
            "left_out": self._left_out,
            "faults": self.faults,
        }

    def table(self) -> str:
        """For people."""
        lines = ["| kind | sent | answers | slowest, s |", "| --- | --- | --- | --- |"]
        for kind, row in self.as_json()["kinds"].items():
            statuses = ", ".join(f"{status}: {count}" for status, count in row["statuses"].items())
            lines.append(f"| {kind} | {row['sent']} | {statuses} | {row['slowest_seconds']} |")
        for slow in self._slow:
            lines.append(f"| {slow.what} | {slow.callers} | {slow.statuses} | {slow.held:.1f} |")
        lines.append(
            f"OpenAPI document: {self._document}; neighbour: {self._neighbour}; server: {self.as_json()['server']}"
        )
        lines += [f"not done: {reason}" for reason in self._left_out]
        return "\n".join([*lines, f"{len(self.faults)} faults", *self.faults[:50]])

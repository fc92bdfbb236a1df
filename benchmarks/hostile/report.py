"""Results of a run of ``benchmarks.hostile``."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from benchmarks.common.report import table, versions
from benchmarks.hostile.neighbour import Neighbour
from tests.serve.hostile.slow_callers import Slow
from tests.served import Served

GROWN = 32.0  # MiB that the server may grow from the middle to the end: by the middle it has met its largest tasks
PACKAGES = ("uvicorn", "httptools", "uvloop", "fastapi", "orjson", "onnxruntime", "numpy", "schemathesis")


class Report:
    """Collects counts, times and faults.

    Args:
        seed: Seed of the run.

    Attributes:
        seed: Seed of the run.
        faults: Descriptions of what was wrong.
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
        """Add one mutated request or attack.

        Args:
            kind: Kind of mutation.
            number: Number of the request.
            statuses: Statuses of the replies; empty counts as 0.
            seconds: Time that it took.
            fault: What was wrong, or None.
        """
        self._sent[kind] += 1
        self._statuses[kind].update(str(status) for status in statuses or (0,))
        self._slowest[kind] = max(self._slowest[kind], (seconds, number))
        if fault is not None:
            self.faults.append(fault)

    def slow(self, slow: Slow) -> None:
        """Add the result of slow callers."""
        self._slow.append(slow)
        if slow.fault is not None:
            self.faults.append(f"{slow.what}: {slow.fault}")

    def left_out(self, reason: str) -> None:
        """Add the reason why a check cannot run on this machine."""
        self._left_out.append(reason)

    def begin(self, server: Served) -> None:
        """Sample the server after the warm-up."""
        self._server |= {"memory_before_mib": server.memory(), "descriptors_before": server.descriptors()}

    def look(self, server: Served) -> None:
        """Sample the server's memory."""
        self._memory.append(round(server.memory(), 1))
        self._server["memory_peak_mib"] = max(self._server["memory_peak_mib"], self._memory[-1])

    def end(self, server: Served) -> None:
        """Sample the server when all callers are gone, and check what it kept."""
        self.look(server)
        self._server |= {"memory_after_mib": server.memory(), "descriptors_after": server.descriptors()}
        grown = self._server["memory_after_mib"] - self._memory[len(self._memory) // 2]
        opened = self._server["descriptors_after"] - self._server["descriptors_before"]
        if grown > GROWN:
            self.faults.append(f"the server has grown by {grown:.0f} MiB")
        if opened > 0:
            self.faults.append(f"the server has {opened:.0f} more descriptors open than before")

    def ended_with(self, code: int) -> None:
        """Check the server's exit code."""
        if code:
            self.faults.append(f"the server ended with code {code}")

    def neighbour(self, neighbour: Neighbour) -> None:
        """Add the results of the neighbour."""
        self.faults += neighbour.faults
        self._neighbour = {"answers": neighbour.answers, "slowest_seconds": round(neighbour.slowest, 3)}

    def document(self, requests: int, routes: int, fault: str | None) -> None:
        """Add the results of requests made from the OpenAPI document."""
        self.faults += [] if fault is None else [fault]
        self._document = {"requests": requests, "routes": routes}

    def as_json(self) -> dict[str, Any]:
        """All results."""
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
            "versions": versions(PACKAGES),
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
        """Results as a table, with the faults below it."""
        results = self.as_json()
        rows: list[tuple[object, ...]] = [
            (kind, row["sent"], ", ".join(f"{status}: {count}" for status, count in row["statuses"].items()),
             row["slowest_seconds"])
            for kind, row in results["kinds"].items()
        ]  # fmt: skip
        rows += [(slow.what, slow.callers, slow.statuses, f"{slow.held:.1f}") for slow in self._slow]
        lines = [
            table(("kind", "sent", "answers", "slowest, s"), rows),
            f"OpenAPI document: {self._document}; neighbour: {self._neighbour}; server: {results['server']}",
            *(f"not done: {reason}" for reason in self._left_out),
        ]
        return "\n".join([*lines, f"{len(self.faults)} faults", *self.faults[:50]])

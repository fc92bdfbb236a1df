"""Results of a run of ``benchmarks.hostile``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.common.report import table, versions
from tests.serve.hostile.slow_callers import Slow
from tests.served import Served

GROWTH = 1.1  # most that the median of memory may grow from the second third of the samples to the last
PACKAGES = ("uvicorn", "httptools", "uvloop", "fastapi", "orjson", "onnxruntime", "numpy", "schemathesis")


@dataclass
class Kind:
    """Counts of one kind of mutation.

    Attributes:
        sent: Number of requests or attacks.
        statuses: Number of replies by status; 0 stands for none, where that is right.
        slowest: Seconds of the slowest one, and its number.
    """

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, 0)

    def as_json(self) -> dict[str, Any]:
        """The counts as they are written."""
        seconds, number = self.slowest
        statuses = dict(sorted(self.statuses.items()))
        return {
            "sent": self.sent,
            "statuses": statuses,
            "slowest_seconds": round(seconds, 3),
            "slowest_number": number,
        }


@dataclass
class Report:
    """Collects counts, times and faults.

    Attributes:
        seed: Seed of the run.
        kinds: Counts by kind of mutation.
        slow: Results of slow callers.
        document: Numbers of requests made from the OpenAPI document, and of its routes.
        neighbour: Number of answers to the neighbour, and seconds of the slowest.
        server: MiB and open files of the server before and after, and its peak.
        memory: MiB of the server in between.
        left_out: Reasons why checks cannot run on this machine.
        faults: Descriptions of what was wrong.
    """

    seed: int
    kinds: dict[str, Kind] = field(default_factory=dict)
    slow: list[Slow] = field(default_factory=list)
    document: dict[str, int] = field(default_factory=dict)
    neighbour: dict[str, float] = field(default_factory=dict)
    server: dict[str, float] = field(default_factory=lambda: {"memory_peak_mib": 0.0})
    memory: list[float] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, name: str, number: int, statuses: list[int], seconds: float) -> None:
        """Add the replies to one mutated request or attack."""
        kind = self.kinds.setdefault(name, Kind())
        kind.sent += 1
        kind.statuses.update(str(status) for status in statuses or (0,))
        kind.slowest = max(kind.slowest, (seconds, number))

    def add_slow(self, slow: Slow) -> None:
        """Add the result of slow callers."""
        self.slow.append(slow)
        self.faults += [] if slow.fault is None else [f"{slow.what}: {slow.fault}"]

    def begin(self, server: Served) -> None:
        """Sample the server after the warm-up."""
        self.server |= {"memory_before_mib": server.memory(), "descriptors_before": server.descriptors()}

    def sample(self, server: Served) -> None:
        """Sample the server's memory."""
        self.memory.append(round(server.memory(), 1))
        self.server["memory_peak_mib"] = max(self.server["memory_peak_mib"], self.memory[-1])

    def end(self, server: Served) -> None:
        """Sample the server when all callers are gone, check what it kept, and stop it."""
        self.sample(server)
        self.server |= {"memory_after_mib": server.memory(), "descriptors_after": server.descriptors()}
        self.server["memory_growth"] = growth(self.memory)
        opened = self.server["descriptors_after"] - self.server["descriptors_before"]
        if self.server["memory_growth"] > GROWTH:
            self.faults.append(f"the server's memory has grown by a factor of {self.server['memory_growth']}")
        if opened > 0:
            self.faults.append(f"the server has {opened:.0f} more descriptors open than before")
        if code := server.stop():
            self.faults.append(f"the server ended with code {code}")

    def as_json(self) -> dict[str, Any]:
        """All results."""
        return {
            "versions": versions(PACKAGES),
            "seed": self.seed,
            "requests": sum(kind.sent for kind in self.kinds.values()),
            "kinds": {name: kind.as_json() for name, kind in sorted(self.kinds.items())},
            "slow_callers": [slow._asdict() for slow in self.slow],
            "document": self.document,
            "neighbour": self.neighbour,
            "server": {name: round(value, 1) for name, value in self.server.items()},
            "memory_mib": self.memory,
            "left_out": self.left_out,
            "faults": self.faults,
        }

    def table(self) -> str:
        """Results as a table, with the faults below it."""
        results = self.as_json()
        rows: list[tuple[object, ...]] = []
        for kind, row in results["kinds"].items():
            statuses = ", ".join(f"{status}: {count}" for status, count in row["statuses"].items())
            rows.append((kind, row["sent"], statuses, row["slowest_seconds"]))
        rows += [(slow.what, slow.callers, slow.statuses, f"{slow.held:.1f}") for slow in self.slow]
        lines = [
            table(("kind", "sent", "answers", "slowest, s"), rows),
            f"OpenAPI document: {self.document}; neighbour: {self.neighbour}; server: {results['server']}",
            *(f"not done: {reason}" for reason in self.left_out),
        ]
        return "\n".join([*lines, f"{len(self.faults)} faults", *self.faults[:50]])


def growth(samples: Sequence[float]) -> float:
    """Compute the median of the last third of the samples over that of the second.

    Medians, because single samples rise and fall by a tenth with the requests of the moment; not of the first third, in
    which a server meets its largest tasks.

    Args:
        samples: MiB; of fewer than three the result is 1.
    """
    third = len(samples) // 3
    return round(median(samples[-third:]) / median(samples[third:-third]), 3) if third else 1.0

"""Counters of a model since the server started, in the form of the protocol's statistics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOST_EXACT = 64
PHASES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


def _ignore(*_: int) -> None:
    """The default of callbacks."""


@dataclass
class Timing:
    """A count of events and their total duration."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one event of so many nanoseconds."""
        self.count += 1
        self.ns += ns

    def as_json(self) -> dict[str, int]:
        """The protocol's form."""
        return {"count": self.count, "ns": self.ns}


@dataclass
class ModelStats:
    """The statistics of one model; used from the event loop's thread alone.

    Attributes:
        queued: Requests that wait for the engine or are being computed.
        inference_count: Requests computed.
        execution_count: Calls of the engine.
        last_inference: Time of the last request in milliseconds since 1970; 0: never.
        phases: Timings by the protocol's names.
        batches: Timings of the engine's calls by their numbers of images.
        on_called: Called with the images and nanoseconds of every call of the engine.
        on_waited: Called with the nanoseconds that every computed request waited.
    """

    queued: int = 0
    inference_count: int = 0
    execution_count: int = 0
    last_inference: int = 0
    phases: dict[str, Timing] = field(default_factory=lambda: {name: Timing() for name in PHASES})
    batches: dict[int, Timing] = field(default_factory=dict)
    on_called: Callable[[int, int], None] = _ignore
    on_waited: Callable[[int], None] = _ignore

    def entered(self) -> None:
        """Count a request into the queue."""
        self.queued += 1

    def left(self) -> None:
        """Count a request out of the queue, computed or not."""
        self.queued -= 1

    def executed(self, queue_ns: int, engine_ns: int) -> None:
        """Count a computed request."""
        self.inference_count += 1
        self.on_waited(queue_ns)
        self.last_inference = time.time_ns() // 1_000_000
        self.phases["queue"].add(queue_ns)
        self.phases["compute_infer"].add(engine_ns)
        self.phases["success"].add(queue_ns + engine_ns)

    def called(self, images: int, engine_ns: int) -> None:
        """Count a call of the engine, which may serve several requests."""
        self.execution_count += 1
        self.on_called(images, engine_ns)
        # Callers choose sizes, which must not fill the memory: large ones are counted by powers of two.
        size = images if images <= MOST_EXACT else 1 << (images - 1).bit_length()
        self.batches.setdefault(size, Timing()).add(engine_ns)

    def carried(self, input_ns: int, output_ns: int) -> None:
        """Count the decoding and encoding of a request that was computed."""
        self.phases["compute_input"].add(input_ns)
        self.phases["compute_output"].add(output_ns)
        self.phases["success"].ns += input_ns + output_ns

    def failed(self, total_ns: int) -> None:
        """Count a request that was refused or failed."""
        self.phases["fail"].add(total_ns)

    def as_json(self, name: str, version: str) -> dict[str, Any]:
        """An entry of the protocol's ``model_stats``; a batch is the images of one call of the engine."""
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {phase: timing.as_json() for phase, timing in self.phases.items()},
            "batch_stats": [
                {"batch_size": images, "compute_infer": timing.as_json()}
                for images, timing in sorted(self.batches.items())
            ],
        }

"""What a model has done since the server started, as the protocol's statistics show it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def _nobody(*_: int) -> None:
    """Nobody wants to know."""


@dataclass
class Timing:
    """How often something was done, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Once more."""
        self.count += 1
        self.ns += ns

    def as_json(self) -> dict[str, int]:
        """The protocol's form."""
        return {"count": self.count, "ns": self.ns}


MOST_EXACT = 64
PHASES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class ModelStats:
    """Counted from the event loop's thread alone.

    Attributes:
        queued: Requests that wait for the engine or are in it.
        inference_count: Requests answered.
        execution_count: Calls of the engine.
        last_inference: Milliseconds since 1970, 0 for never.
        phases: By the protocol's names.
        batches: Calls of the engine by their numbers of images.
        on_called: Told of every call of the engine: images, nanoseconds.
        on_waited: Told how long every answered request waited for its call.
    """

    queued: int = 0
    inference_count: int = 0
    execution_count: int = 0
    last_inference: int = 0
    phases: dict[str, Timing] = field(default_factory=lambda: {name: Timing() for name in PHASES})
    batches: dict[int, Timing] = field(default_factory=dict)
    on_called: Callable[[int, int], None] = _nobody
    on_waited: Callable[[int], None] = _nobody

    def entered(self) -> None:
        """A request waits for the engine."""
        self.queued += 1

    def left(self) -> None:
        """It has been computed, or will not be."""
        self.queued -= 1

    def executed(self, queue_ns: int, engine_ns: int) -> None:
        """The engine has computed a request."""
        self.inference_count += 1
        self.on_waited(queue_ns)
        self.last_inference = time.time_ns() // 1_000_000
        self.phases["queue"].add(queue_ns)
        self.phases["compute_infer"].add(engine_ns)
        self.phases["success"].add(queue_ns + engine_ns)

    def called(self, images: int, engine_ns: int) -> None:
        """The engine has been called once, for one or more requests."""
        self.execution_count += 1
        self.on_called(images, engine_ns)
        # Sizes that callers make up must not fill the memory: large ones are counted by powers of two.
        size = images if images <= MOST_EXACT else 1 << (images - 1).bit_length()
        self.batches.setdefault(size, Timing()).add(engine_ns)

    def carried(self, input_ns: int, output_ns: int) -> None:
        """What was computed has been read from bytes and written to bytes."""
        self.phases["compute_input"].add(input_ns)
        self.phases["compute_output"].add(output_ns)
        self.phases["success"].ns += input_ns + output_ns

    def failed(self, total_ns: int) -> None:
        """A request has got none."""
        self.phases["fail"].add(total_ns)

    def as_json(self, name: str, version: str) -> dict[str, Any]:
        """An entry of the protocol's ``model_stats``, a batch being the images of one call of the engine."""
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

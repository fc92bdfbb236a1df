"""The interface between the HTTP layer and the models, in this process or in another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from yolo_assigner.serve.inference.registry import ModelInfo, ModelRegistry
from yolo_assigner.serve.wire.buffers import BufferPool
from yolo_assigner.serve.wire.response import EncodedResponse


class Operation(StrEnum):
    """The operations of a service."""

    INFER = "infer"
    LOSS = "loss"
    ASSIGN = "assign"
    EXPLAIN = "explain"
    REDUCE = "reduce"
    REGION_STATUS = "region status"
    REGION_REGISTER = "region register"
    REGION_UNREGISTER = "region unregister"
    LOAD = "load"  # sent to the engine process alone; routes call Service.reload


class Call(NamedTuple):
    """A request without its body.

    Attributes:
        operation: The operation to perform.
        target: Name of a model or of a shared-memory region; None where the body names it, or for all.
        json_length: Bytes of JSON before the first tensor; None when the whole body is JSON.
        arrived: When the body was complete, by ``time.monotonic``.
        allowed: Seconds that the request may wait for its model unless it names a timeout; None: no limit.
    """

    operation: Operation
    target: str | None = None
    json_length: int | None = None
    arrived: float = 0.0
    allowed: float | None = None

    def deadline(self, microseconds: int | None = None) -> float | None:
        """When computing must have begun, by ``time.monotonic``; None: no limit.

        Args:
            microseconds: The timeout that the request names; None: it names none.
        """
        seconds = self.allowed if microseconds is None else microseconds / 1e6
        return None if seconds is None else self.arrived + seconds


def new_call(
    operation: Operation, target: str | None = None, json_length: int | None = None, allowed: float | None = None
) -> Call:
    """Make a call whose body has just arrived."""
    return Call(operation, target, json_length, time.monotonic(), allowed)


class Service(Protocol):
    """Models, and everything between the bytes of a request and those of its response.

    Attributes:
        extensions: Extensions of the protocol, beyond binary tensors.
        restarts: How often the engine process was restarted.
    """

    extensions: Sequence[str]
    restarts: int

    @property
    def queued(self) -> int:
        """Requests that wait for an engine, or that one computes."""

    @property
    def memory(self) -> BufferPool:
        """Memory that bodies are read into."""

    @property
    def pid(self) -> int | None:
        """Process id of the engine process; None where models run in this process."""

    @property
    def registry(self) -> ModelRegistry[ModelInfo]:
        """All models."""

    async def load(self) -> None:
        """Load all models. Those that cannot be loaded are among the registry's failures.

        Raises:
            Exception: No model can be loaded.
        """

    async def reload(self, name: str) -> None:
        """Load the current files of a model and replace the one in use, between two requests.

        Raises:
            NotFoundError: The artifacts have no such model.
            BadRequestError: The model cannot be loaded; the one in use stays.
        """

    def check_alive(self) -> None:
        """Check that waiting can help.

        Raises:
            StuckError: The engine process has been down for long; only a restart of the server is left to try.
        """

    def check_ready(self) -> None:
        """Check that requests can be answered now.

        Raises:
            NotReadyError: Models are still being loaded, or no engine process is up.
        """

    def check(self, name: str | None = None) -> None:
        """Check, before a body is read, that a request can be answered now or soon.

        Args:
            name: A model that exists; None: the request may need any.

        Raises:
            NotReadyError: The model is being loaded for the first time.
            ModelFailedError: The model could not be loaded.
        """

    async def run(self, call: Call, body: memoryview) -> EncodedResponse:
        """Answer a request. Cancelling the caller dequeues its request.

        Args:
            call: The request but for its body.
            body: JSON and raw tensors, in memory of :attr:`memory` or anywhere.

        Raises:
            ServeError: The request was refused or failed; the text says why.
        """

    def close(self) -> None:
        """Close all models."""

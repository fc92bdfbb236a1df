"""What routes ask for, whoever computes it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from yolo_assigner.serve.inference.registry import ModelInfo, ModelRegistry
from yolo_assigner.serve.wire.buffers import BufferPool
from yolo_assigner.serve.wire.response import EncodedResponse


class Operation(StrEnum):
    """What can be asked for."""

    INFER = "infer"
    LOSS = "loss"
    ASSIGN = "assign"
    REDUCE = "reduce"
    REGION_STATUS = "region status"
    REGION_REGISTER = "region register"
    REGION_UNREGISTER = "region unregister"
    LOAD = "load"


class Call(NamedTuple):
    """A request but for its body.

    Attributes:
        operation: What is asked for.
        target: Name of a model, or of a region of shared memory; None where that is in the body, or for all.
        json_length: Bytes of JSON before the first tensor; None when all of the body is JSON.
        arrived: When the body was there, by ``time.monotonic``.
        allowed: Seconds that it may wait for its model when it says nothing itself; None: for ever.
    """

    operation: Operation
    target: str | None = None
    json_length: int | None = None
    arrived: float = 0.0
    allowed: float | None = None

    def deadline(self, microseconds: int | None = None) -> float | None:
        """When it must have begun to be computed, by ``time.monotonic``; None: whenever.

        Args:
            microseconds: What the request itself allows; None: nothing said.
        """
        seconds = self.allowed if microseconds is None else microseconds / 1e6
        return None if seconds is None else self.arrived + seconds


def new_call(
    operation: Operation, target: str | None = None, json_length: int | None = None, allowed: float | None = None
) -> Call:
    """A call whose body is there."""
    return Call(operation, target, json_length, time.monotonic(), allowed)


class Service(Protocol):
    """Models, and all that happens between the bytes of a request and those of its reply.

    Attributes:
        extensions: Of the protocol, beyond binary tensors.
        restarts: How often the engines' process was started again.
    """

    extensions: Sequence[str]
    restarts: int

    @property
    def queued(self) -> int:
        """Requests that wait for an engine, or that one computes."""

    @property
    def memory(self) -> BufferPool:
        """What bodies are to be read into."""

    @property
    def pid(self) -> int | None:
        """Of the engines' process, where they have one of their own."""

    @property
    def registry(self) -> ModelRegistry[ModelInfo]:
        """The models."""

    async def load(self) -> None:
        """Bring all models up. Those that cannot be loaded are among the catalogue's failures.

        Raises:
            Exception: No model can be loaded.
        """

    async def reload(self, name: str) -> None:
        """Load a model's files as they are now, and exchange them for those in use, between two requests.

        Raises:
            NotFoundError: There is no such model among the artifacts.
            BadRequestError: It cannot be loaded; the one in use stays.
        """

    def names(self) -> set[str]:
        """All models that can be reloaded: those that are known and those that are new among the artifacts."""

    def check_alive(self) -> None:
        """See whether waiting can help.

        Raises:
            StuckError: Nothing has been computed for long, and only a restart of this process is left to try.
        """

    def check_ready(self) -> None:
        """See whether requests can be answered now.

        Raises:
            NotReadyError: Models are still being loaded, or no engine is up.
        """

    def check(self, name: str | None = None) -> None:
        """See, before a body is read, that a request can be answered, if not at once.

        Args:
            name: Of a model that exists; None: all of them are needed.

        Raises:
            NotReadyError: It is still being loaded.
            ModelFailedError: It cannot be loaded.
        """

    async def run(self, call: Call, body: memoryview) -> EncodedResponse:
        """Answer a request. Whoever is cancelled while he waits takes his work out of the queue.

        Args:
            call: What is asked for.
            body: In memory of :attr:`memory`, or anywhere.

        Raises:
            ServeError: The request is refused or failed; the text says why.
        """

    def close(self) -> None:
        """Stop."""

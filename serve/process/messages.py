"""What the process that answers callers and the one that computes say to each other."""

from __future__ import annotations

from typing import Any, NamedTuple

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.errors import ServeError
from yolo_assigner.serve.inference.service import Call


class Span(NamedTuple):
    """A part of a segment of shared memory.

    Attributes:
        segment: Its number.
        start: First byte.
        size: Bytes.
    """

    segment: int
    start: int
    size: int


class Begin(NamedTuple):
    """Answer this.

    Attributes:
        id: Of the call; also of all that is said about it.
        call: What is asked for.
        body: Its bytes, or where they are.
        request_id: For the log.
    """

    id: int
    call: Call
    body: bytes | Span
    request_id: str


class Cancel(NamedTuple):
    """Nobody waits for this call any more."""

    id: int


class Answer(NamedTuple):
    """A call's reply.

    Attributes:
        id: Of the call.
        body: Its bytes, or where they are.
        header_length: Bytes of JSON; None when all of it is.
    """

    id: int
    body: bytes | Span
    header_length: int | None


class Refusal(NamedTuple):
    """A call failed; without a reason for callers the log has it."""

    id: int
    error: ServeError | None


class BodyFree(NamedTuple):
    """Nothing reads the body of this call any more."""

    id: int


class ReplyFree(NamedTuple):
    """Nothing reads the reply of this call any more."""

    id: int


class SegmentMade(NamedTuple):
    """There is a new segment of the sender's; its descriptor comes along."""

    number: int
    size: int


class SegmentGone(NamedTuple):
    """The sender will not speak of this segment again."""

    number: int


class SegmentLost(NamedTuple):
    """The receiver could not map this segment; it has to be sent again before it is used."""

    number: int


class ModelState(NamedTuple):
    """What has become of a model. One that is neither ready nor failed is being loaded from now on.

    Attributes:
        name: The model's.
        contract: As its file has it now; None: it cannot be read.
        ready: It can be used.
        failure: Why it cannot be loaded; None: it has not failed.
        platform: What runs it, by Triton's names.
        dynamic_batching: Requests are put together.
    """

    name: str
    contract: Contract | None = None
    ready: bool = False
    failure: str | None = None
    platform: str = ""
    dynamic_batching: bool = False


class Extensions(NamedTuple):
    """The protocol's extensions; said before any model is ready, for callers may ask as soon as one is."""

    names: tuple[str, ...]


class AllLoaded(NamedTuple):
    """All models are ready or have failed."""


class LoadFailed(NamedTuple):
    """No model can be loaded; the worker ends."""

    reason: str


class Alive(NamedTuple):
    """The worker's interpreter is not held by anybody; said now and then where engines are watched."""


class RegionsChanged(NamedTuple):
    """Other regions of shared memory are registered now.

    Attributes:
        state: All of them, for the next worker alone to read.
    """

    state: bytes


class Counted(NamedTuple):
    """A method of a model's :class:`yolo_assigner.serve.inference.stats.ModelStats` is to be called."""

    model: str
    method: str
    values: tuple[Any, ...]

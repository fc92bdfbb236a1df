"""Messages between the server and its worker."""

from __future__ import annotations

from typing import NamedTuple

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.errors import ServeError
from yolo_assigner.serve.inference.service import Call


class Span(NamedTuple):
    """A part of a segment of shared memory.

    Attributes:
        segment: Number of the segment.
        start: First byte.
        size: Number of bytes.
    """

    segment: int
    start: int
    size: int


class StartCall(NamedTuple):
    """Asks the worker to answer a call.

    Attributes:
        id: Identifies the call in all messages about it.
        call: What to do.
        body: Its bytes, or where they lie.
        request_id: Identifies the request in the log.
    """

    id: int
    call: Call
    body: bytes | Span
    request_id: str


class CancelCall(NamedTuple):
    """Tells the worker that the answer of a call is no longer wanted."""

    id: int


class Recorded(NamedTuple):
    """What the statistics of a model are to record; see :class:`yolo_assigner.serve.inference.stats.ModelStats`.

    Attributes:
        model: Name of the model.
        executed: For each computed request, nanoseconds in the queue and in the engine.
        called: For each call of the engine, images and nanoseconds.
        carried: For each answered request, nanoseconds of decoding its inputs and of encoding its outputs.
        failed: For each failed request, nanoseconds until then.
    """

    model: str
    executed: tuple[tuple[int, int], ...]
    called: tuple[tuple[int, int], ...]
    carried: tuple[tuple[int, int], ...]
    failed: tuple[int, ...]


class Answer(NamedTuple):
    """The reply to a call.

    Attributes:
        id: Identifies the call.
        body: Its bytes, or where they lie.
        header_length: Bytes of JSON before the first tensor; None when all of it is JSON.
        recorded: What models have done since the last answer or refusal.
    """

    id: int
    body: bytes | Span
    header_length: int | None
    recorded: tuple[Recorded, ...]


class Refusal(NamedTuple):
    """A call failed, or was cancelled.

    Attributes:
        id: Identifies the call.
        error: What to tell the caller; None when only the log says why.
        recorded: As in :class:`Answer`.
    """

    id: int
    error: ServeError | None
    recorded: tuple[Recorded, ...]


class SegmentMade(NamedTuple):
    """Announces a new segment of the sender; its descriptor comes along."""

    number: int
    size: int


class SegmentLost(NamedTuple):
    """Tells the owner of a segment that it could not be mapped: it must be announced again before it is used."""

    number: int


class SegmentGone(NamedTuple):
    """Tells that the sender has dropped one of its segments."""

    number: int


class Returned(NamedTuple):
    """Returns the memory that the receiver lent for a call: the body to the server, the reply to the worker."""

    id: int


LeaseMessage = SegmentMade | SegmentLost | SegmentGone | Returned


class ModelState(NamedTuple):
    """State of a model. One that is neither ready nor failed is being loaded from now on.

    Attributes:
        name: Name of the model.
        contract: As its file has it now; None when it cannot be read.
        ready: Whether requests can be computed.
        failure: Why it cannot be loaded; None when it has not failed.
        platform: Triton's name of the runtime.
        dynamic_batching: Whether requests are merged into batches.
    """

    name: str
    contract: Contract | None = None
    ready: bool = False
    failure: str | None = None
    platform: str = ""
    dynamic_batching: bool = False


class RegionsChanged(NamedTuple):
    """Regions of shared memory were registered or unregistered.

    Attributes:
        state: All regions, pickled for the next worker.
    """

    state: bytes


Report = ModelState | RegionsChanged | Recorded


class Loaded(NamedTuple):
    """All models are ready or have failed. With a reason none is ready, and the worker ends."""

    failure: str | None = None


class Alive(NamedTuple):
    """Shows that the worker's interpreter is not blocked; sent periodically where engines have a time limit."""

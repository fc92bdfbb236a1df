"""uvicorn's HTTP connection with limits on callers that send malformed, slow or endless requests, or do not read.

uvicorn limits the time of idle connections alone. Without this module, one connection without a key could send a head
without end, or fill the memory with requests that it sends before earlier ones are answered (HTTP pipelining). Requests
refused here never get to the application.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from yolo_assigner.serve.errors import BusyError
from yolo_assigner.serve.http.limits import MAX_BUFFERED_BYTES, MINIMUM_RATE, ConnectionLimits, Timer, WriteWatch
from yolo_assigner.serve.http.observe import Refusals, identifier_of
from yolo_assigner.serve.listening import caller_of
from yolo_assigner.serve.wire.response import dump_json

MOST_HEAD = 2**16  # bytes of a request's head; also of trailers, and of what stands between two parts of a body
MOST_HEADERS = 256
TOO_LONG = f"the request has more than {MOST_HEAD} bytes beside its body; send shorter headers"
BAD, SLOW, LARGE, UNSUPPORTED, BUSY = 400, 408, 431, 501, 503
# Heads and chunked bodies end with an empty line, so data up to the first one has at most one beginning of a request.
EMPTY_LINE = re.compile(rb"\n\r?\n")
NOTHING = memoryview(b"")
NOT_HTTP = "Invalid HTTP request received. It is not HTTP/1.1, or its lengths contradict each other"
# Overridden or used below, and not public in uvicorn.
NEEDED = (
    *("_unset_keepalive_if_required", "timeout_keep_alive_handler"),
    *("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete", "on_response_complete"),
)
if missing := [name for name in NEEDED if not hasattr(HttpToolsProtocol, name)]:
    raise ImportError(
        f"this uvicorn has no {', '.join(missing)}, which guard connections; install the one of constraints.txt"
    )


def protocol(client_timeout: float | None, limits: ConnectionLimits, refusals: Refusals) -> type[asyncio.Protocol]:
    """The class for uvicorn's setting ``http``.

    Args:
        client_timeout: Seconds in which a head must have come, and in which there must be progress while the rest of a
            refused body is dropped or a reply is sent; None: no limit.
        limits: Of all connections together.
        refusals: Counts and logs refusals.
    """
    shared = {"client_timeout": client_timeout, "limits": limits, "refusals": refusals}
    return type("Guarded", (GuardedProtocol,), shared)


class _Flow(FlowControl):
    """Flow control that keeps reading paused while a request waits for the reply to an earlier one.

    Args:
        transport: The connection.
        stopped: Whether nothing may be read, even when uvicorn or an application resumes reading.
    """

    def __init__(self, transport: asyncio.Transport, stopped: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._stopped = stopped

    def resume_reading(self) -> None:
        """Resume reading unless it must stay paused."""
        if not self._stopped():
            super().resume_reading()


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Its class attributes are set by :func:`protocol`."""

    client_timeout: float | None = None
    limits: ConnectionLimits
    refusals: Refusals

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_message = self._in_head = False
        self._refusal: tuple[int, str] | None = None
        self._beside_body = 0  # consecutive bytes that belonged to no body and completed nothing
        self._got_body = False
        self._body_left = 0  # bytes of a body with a Content-Length
        self._pending = NOTHING  # came behind a request that waits for the reply to an earlier one; not parsed yet
        self._discarding = False  # data that comes now is dropped
        self._dropped, self._dropped_since = 0, 0.0
        self._running: Any = None  # the request that is being answered; uvicorn's ``cycle`` is the last one that came
        self._reading = Timer()
        self._writing = WriteWatch(self.client_timeout, self._cut_off)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the limits; the connection is idle until a request comes."""
        super().connection_made(transport)
        self.client = caller_of(self.client, self.server)
        self.flow = _Flow(transport, lambda: self._discarding or bool(self.pipeline))
        self.limits.enter(transport)
        self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers, and tell the application."""
        self._reading.stop()
        self._writing.end()
        self._unset_keepalive_if_required()
        self._keep(NOTHING)
        self.limits.leave(self.transport)
        if self._running is not None and not self._running.response_complete:
            # uvicorn tells only the last request that came, which may wait for this one.
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    # Called by the parser.

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._reading.stop()  # the timer of the previous request
        self._in_message = self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or trailer is complete."""
        super().on_header(name, value)
        if len(self.headers) > MOST_HEADERS:
            self._refusal = LARGE, f"the request has more than {MOST_HEADERS} headers; send fewer"
            raise ValueError(self._refusal)  # which stops the parser

    def on_headers_complete(self) -> None:
        """The head is complete; refuse it or start the application."""
        self._in_head = False
        self._refusal = _head_fault(self.url, self.headers, self.parser.get_http_version())
        if self._refusal is None and not self._busy and (full := self.limits.why_full(self.transport)):
            self._refusal = BUSY, full
        if self._refusal is not None:
            raise ValueError(self._refusal)  # which stops the parser
        self._body_left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        if not self.flow.write_paused:
            self._writing.end()
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle

    def on_body(self, body: bytes) -> None:
        """A part of a body came."""
        self._got_body = True
        self._body_left = max(0, self._body_left - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._in_message = False
        self._body_left = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The reply is complete, perhaps before its request; go on with the next one."""
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        self._dropped, self._dropped_since = 0, self.loop.time()
        if self.transport.is_closing():
            self._writing.begin_closing(self.transport)
        self._parse(self._pending)
        self._watch_reading()

    # Data in both directions.

    def data_received(self, data: bytes) -> None:
        """Parse data, as far as it may be parsed now."""
        self._parse(memoryview(bytes(self._pending) + data if self._pending else data))
        self._watch_reading()

    def _parse(self, data: memoryview) -> None:
        """Parse up to the second request without a complete reply, and keep the rest unparsed.

        A parsed request takes hundreds of times the memory of its bytes.
        """
        while data and not (self.pipeline or self._discarding or self.transport.is_closing()):
            end = self._body_left
            if not end:
                line = EMPTY_LINE.search(data)
                end = line.end() if line else len(data)
            self._parse_piece(data[:end])
            data = data[end:]
        self._keep(data if self.pipeline and not self._discarding else NOTHING)

    def _keep(self, data: memoryview) -> None:
        """Keep data to be parsed later, within the limit of all connections together."""
        self.limits.buffered_bytes += _size(data) - _size(self._pending)
        self._pending = data
        if data and self.limits.buffered_bytes > MAX_BUFFERED_BYTES:
            self._refuse(BUSY, "too many requests were sent before earlier ones were answered")

    def _parse_piece(self, data: memoryview) -> None:
        went_on, self._got_body = self._in_message, False
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The parser stops here, so this is the last request.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or (BAD, NOT_HTTP)))
        self._beside_body = self._beside_body + len(data) if went_on and not self._got_body else 0
        if self._in_message and self._beside_body > MOST_HEAD:
            self._refuse(LARGE, TOO_LONG)
        self._dropped += len(data)

    @property
    def _busy(self) -> bool:
        """Whether a request has begun whose reply is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _watch_reading(self) -> None:
        """Set the timer for what the caller has to send next."""
        timeout, now = self.client_timeout, self.loop.time()
        if self._busy or self.transport.is_closing():
            self.limits.set_busy(self.transport)
        else:
            self.limits.set_idle(self.transport)
        if self._in_head and not self._busy and not self.transport.is_closing():
            if timeout is not None and not self._reading.running:
                self._reading.start(now + timeout, self._too_slow)
            return
        self._reading.stop()
        if self._busy or self.transport.is_closing():
            return  # the application limits the time of bodies that it reads
        if not self._in_message:
            if self.transport.get_write_buffer_size() and not self._writing.running:
                self._writing.begin(self.transport)
            if self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._close)
        elif timeout is not None:
            least = min(now, self._dropped_since + self._dropped / MINIMUM_RATE)
            self._reading.start(least + timeout, self._close)

    def _too_slow(self) -> None:
        self._refuse(SLOW, f"the head did not come within {self.client_timeout:g} s; send it without pauses")

    def pause_writing(self) -> None:
        """Watch a caller that does not read its reply."""
        super().pause_writing()
        self._writing.begin(self.transport)

    def resume_writing(self) -> None:
        """Stop watching: nearly all of the reply is sent."""
        super().resume_writing()
        self._writing.end()
        if self.transport.is_closing():
            self._writing.begin_closing(self.transport)

    def _cut_off(self) -> None:
        self.refusals.log_cut_off(self.client)
        self.transport.abort()

    # Ending the connection.

    def _refuse(self, status: int, text: str) -> None:
        """Answer with an error, and close."""
        if self.transport.is_closing() or self._discarding:
            return
        complete = self._last_complete()
        identifier = self._record(status, text, counted=complete is not None or not self._busy)
        if complete is not None:
            # The fault comes behind complete requests, which get their replies first.
            complete.keep_alive = False
            self._discarding = True
            self._keep(NOTHING)
            self.flow.pause_reading()
            return
        if not (self._busy and self.cycle.response_started):
            headers = [*self.server_state.default_headers, (b"x-request-id", identifier.encode())]
            self.transport.write(_answer(status, text, headers))
        self._close()

    def _record(self, status: int, text: str, *, counted: bool) -> str:
        """Log a refusal, and count it unless the application has the request and counts it.

        Returns:
            Identifier of the refused request.
        """
        if counted:
            self.refusals.count(status)
            identifier = identifier_of(self.headers if self._in_message else ())
        else:
            state: dict[str, Any] = self.cycle.scope["state"]
            identifier = state.get("request_id") or identifier_of(self.headers)
        self.refusals.log(self.client, identifier, status, text)
        return identifier

    def _last_complete(self) -> Any:
        """The last complete request without a complete reply; an incomplete one behind it is dropped."""
        if self._busy and not self.cycle.more_body:
            return self.cycle
        if not self.pipeline:
            return None
        self.pipeline.popleft()
        return self.pipeline[0][0] if self.pipeline else self._running

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        self._close()

    def _close(self) -> None:
        """Close once the caller has read what is still to be sent, or is too slow."""
        self._reading.stop()
        self.transport.close()
        self._writing.begin_closing(self.transport)


def _head_fault(url: bytes, headers: Sequence[tuple[bytes, bytes]], version: str) -> tuple[int, str] | None:
    """Find faults that the parser does not: length, and Host and Transfer-Encoding by RFC 9112, sections 3.2 and 6.1.

    Returns:
        Status and text of a refusal; None for a valid head.
    """
    # A head that comes in one piece is complete before its pieces can be counted.
    if len(url) + sum(len(name) + len(value) + len(": \r\n") for name, value in headers) > MOST_HEAD:
        return LARGE, TOO_LONG
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1 or (hosts == 0 and version >= "1.1"):
        return BAD, f"the request has {hosts} Host headers; send one"
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings not in ([], [b"chunked"]):
        said = b", ".join(codings).decode("latin-1")
        return UNSUPPORTED, f"Transfer-Encoding {said!r} is not understood; send chunked alone, or a Content-Length"
    return None


def _answer(status: int, text: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    body = dump_json({"error": text})
    length = str(len(body)).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    if status == BUSY:
        own += [(name.encode(), value.encode()) for name, value in BusyError.headers.items()]
    return b"".join([STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in (*headers, *own)), b"\r\n", body])


def _size(data: memoryview) -> int:
    """Bytes of memory that a view keeps: those of all the data that was read at once."""
    return memoryview(data.obj).nbytes if data else 0

"""One life of the worker, as the server's process sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any

from yolo_assigner.serve.errors import BusyError, TooLateError
from yolo_assigner.serve.inference.local import Setup
from yolo_assigner.serve.inference.service import Call
from yolo_assigner.serve.logs import request_id
from yolo_assigner.serve.process.channel import Channel
from yolo_assigner.serve.process.messages import (
    Alive,
    Answer,
    CancelCall,
    Loaded,
    ModelState,
    Recorded,
    Refusal,
    RegionsChanged,
    Report,
    StartCall,
)
from yolo_assigner.serve.process.segments import MAX_CALLS, LeaseTable, SharedPool, StartedFlags
from yolo_assigner.serve.system import PREFIX, prefer_as_oom_victim
from yolo_assigner.serve.wire.response import EncodedResponse

# `-m` puts the working folder on the path, where a user's own modules may be; it does so only if this program does.
WORKING_FOLDER = sys.path[0] in ("", str(Path.cwd()))
COMMAND = (sys.executable, *([] if WORKING_FOLDER else ["-P"]), "-m", "yolo_assigner.serve.process")
STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
LINE_BYTES = 2**16  # most bytes of the worker's log that are passed on at a time


class ProcessEndedError(Exception):
    """The worker ended before it answered a call.

    Attributes:
        started: Whether an engine had started on the call.
    """

    def __init__(self, *, started: bool) -> None:
        super().__init__("the engines' process ended")
        self.started = started


class CallFailedError(Exception):
    """A call failed for a reason that only the log has."""


def too_late() -> TooLateError:
    """Return the error of a call whose deadline passed before an engine started on it."""
    return TooLateError("the time of this request was over before its model got to it")


class WorkerProcess:
    """A running worker. Lives in the event loop's thread.

    Args:
        setup: What the worker is to load.
        memory: Memory in which the bodies of calls lie.
        on_report: Called with what the worker says beside its answers.
        on_ended: Called when the process has ended, before calls fail with it.
        command: Command that starts it; the number of its socket's descriptor is appended.

    Attributes:
        ready: Done once all models are ready or have failed; fails with a :class:`ValueError` when none is ready or
            the process ends before.
        loading: Name of the model that is being loaded; None when none is.
        ended: Done with the exit code when the process has ended.
        heard: When its last message came, by ``time.monotonic``.
    """

    def __init__(
        self,
        setup: Setup,
        memory: SharedPool,
        on_report: Callable[[Report], None],
        on_ended: Callable[[], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.loading: str | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        self.heard = time.monotonic()
        self._on_report = on_report
        self._on_ended = on_ended
        self._numbers = count()
        self._answers: dict[int, asyncio.Future[EncodedResponse]] = {}
        self._started = StartedFlags()
        self._used_flags: set[int] = set()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = start(command, theirs.fileno())
        except BaseException:
            ours.close()
            self._started.close()
            raise
        self._channel = Channel(ours, self._take, self._on_channel_closed)
        self._leases = LeaseTable(memory, self._channel)
        self._channel.send(setup, self._started.descriptor)

    @property
    def pid(self) -> int:
        """The process identifier."""
        return self._process.pid

    async def run(self, call: Call, body: memoryview, deadline: float | None) -> EncodedResponse:
        """Send a call, and wait for its answer. Cancelling the caller cancels the call.

        Args:
            call: What to do.
            body: Memory of the pool, or any other.
            deadline: When to stop waiting for an engine to start on the call, by ``time.monotonic``; None: never.

        Raises:
            TooLateError: The deadline passed first.
            ProcessEndedError: The process ended before it answered.
            ServeError: The worker refused the call.
            CallFailedError: It failed; the log says why.
        """
        number = self._start_call(call, body)
        answer = self._answers[number]
        try:
            if deadline is not None:
                await asyncio.wait({answer}, timeout=max(deadline - time.monotonic(), 0.0))
                if not (answer.done() or self._started[number]):
                    raise too_late()
            return await asyncio.shield(answer)  # a cancelled answer would look like one that came
        finally:
            self._end_call(number)
            del answer  # an error that refers to itself would keep the body's memory

    def forget_segment(self, number: int) -> None:
        """Tell the worker that a segment of this process was dropped; from any thread."""
        self._leases.forget(number)

    def close(self) -> None:
        """End the process, and fail what waits for it."""
        if self.ended.done():
            return
        self._channel.close()
        self.kill()
        self._process.wait()
        self._fail_all()
        self._started.close()

    def kill(self) -> None:
        """Kill the process; the rest happens when its end of the channel closes."""
        self._process.kill()

    def _start_call(self, call: Call, body: memoryview) -> int:
        number = next(number for number in self._numbers if number % MAX_CALLS not in self._used_flags)
        lent = self._leases.lend(number, body)
        self._used_flags.add(number % MAX_CALLS)
        self._started[number] = False
        self._answers[number] = asyncio.get_running_loop().create_future()
        self._channel.send(StartCall(number, call, lent, request_id.get()))
        return number

    def _end_call(self, number: int) -> None:
        answer = self._answers.pop(number)
        self._used_flags.discard(number % MAX_CALLS)
        if not answer.done():
            self._channel.send(CancelCall(number))
        elif not answer.cancelled():
            answer.exception()  # marks it as seen, for a caller that was cancelled meanwhile

    def _take(self, message: Any, descriptor: int | None) -> None:
        self.heard = time.monotonic()
        match message:
            case Answer():
                self._record(message.recorded)
                self._answer(message)
            case Refusal():
                self._record(message.recorded)
                self._fail(message.id, message.error or CallFailedError("the log of the engines' process says why"))
            case Loaded(failure=None):
                self.ready.set_result(None)
            case Loaded():
                self.loading = None
                self.ready.set_exception(ValueError(message.failure))
            case ModelState():
                self.loading = None if message.ready or message.failure is not None else message.name
                self._on_report(message)
            case RegionsChanged():
                self._on_report(message)
            case Alive():
                pass  # it was heard
            case _:
                self._leases.handle(message, descriptor)

    def _record(self, recorded: Sequence[Recorded]) -> None:
        for one in recorded:
            self._on_report(one)

    def _answer(self, answer: Answer) -> None:
        try:
            body = self._leases.borrow(answer.id, answer.body)
        except BusyError as error:
            self._fail(answer.id, error)
            return
        waiting = self._answers.get(answer.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(EncodedResponse([body], answer.header_length))

    def _fail(self, number: int, error: Exception) -> None:
        waiting = self._answers.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)

    def _fail_all(self) -> None:
        for number in self._answers:
            self._fail(number, ProcessEndedError(started=self._started[number]))

    def _on_channel_closed(self) -> None:
        self.kill()  # it may have closed its end and live on
        self._reaper = asyncio.create_task(self._reap())

    async def _reap(self) -> None:
        code = await asyncio.to_thread(self._process.wait)
        self._leases.return_all()  # before its end, the process might still have read there
        if not self.ready.done():
            self.ready.set_exception(
                ValueError(f"the engines' process ended while models were loaded ({exit_text(code)})")
            )
        self._on_ended()  # first, so that callers whose calls fail below do not take this process for a living one
        self._fail_all()
        self._started.close()
        self.ended.set_result(code)


def exit_text(code: int) -> str:
    """Describe the exit code of a process."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def start(command: Sequence[str], descriptor: int) -> subprocess.Popen[bytes]:
    """Start the process. Signals for all processes of a group do not reach it before it ignores them.

    It gets no setting from the environment, keys and passwords among them; what it needs is sent to it.
    Where memory is short, the system ends this process, which is started again, and not the server's.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        process = subprocess.Popen(  # noqa: S603 - this program itself
            [*command, str(descriptor)],
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    prefer_as_oom_victim(process.pid)
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    threading.Thread(target=_pass_on, args=(process.stdout,), name="engines-log", daemon=True).start()
    return process


def _pass_on(log: IO[bytes]) -> None:
    """Write the worker's output to standard error. So neither it nor its native code waits for our reader."""
    with log:
        while line := log.readline(LINE_BYTES):
            sys.stderr.write(line.decode(errors="backslashreplace"))

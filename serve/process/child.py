"""One life of the engines' process, seen from the process that answers."""

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
from typing import IO, Any, NamedTuple

from yolo_assigner.serve.errors import BusyError
from yolo_assigner.serve.inference.local import Setup
from yolo_assigner.serve.inference.service import Call
from yolo_assigner.serve.logs import request_id
from yolo_assigner.serve.process.channel import Channel
from yolo_assigner.serve.process.messages import (
    AllLoaded,
    Answer,
    Begin,
    BodyFree,
    Cancel,
    Counted,
    Extensions,
    LoadFailed,
    ModelState,
    Refusal,
    RegionsChanged,
    ReplyFree,
    SegmentGone,
    SegmentLost,
    SegmentMade,
)
from yolo_assigner.serve.process.segments import MARKS, Lender, MappedSegments, Marks, SharedPool
from yolo_assigner.serve.settings import PREFIX
from yolo_assigner.serve.system import prefer_as_oom_victim
from yolo_assigner.serve.wire.response import EncodedResponse

# `-m` puts the working folder on the path, where a user's own modules may be; it does so only if this program does.
WORKING_FOLDER = sys.path[0] in ("", str(Path.cwd()))
COMMAND = (sys.executable, *([] if WORKING_FOLDER else ["-P"]), "-m", "yolo_assigner.serve.process")
STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
LINE = 2**16  # most bytes of what it says that are passed on at a time


def start(command: Sequence[str], descriptor: int) -> subprocess.Popen[bytes]:
    """Start the process. Signals for all processes of a group do not reach it before it ignores them.

    It gets no setting from the environment, keys and passwords among them; what it needs is sent to it.
    Where memory is short, the system ends this process, which is started again, and not the one that answers.
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
    """Write what the process says to standard error. It never waits for our reader, nor does its native code."""
    with log:
        while line := log.readline(LINE):
            sys.stderr.write(line.decode(errors="backslashreplace"))


def ending(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


class ProcessEndedError(Exception):
    """The process ended before it answered a call.

    Attributes:
        begun: An engine had begun with the call.
    """

    def __init__(self, *, begun: bool) -> None:
        super().__init__("the engines' process ended")
        self.begun = begun


class CallFailedError(Exception):
    """A call failed for a reason that only the log has."""


class Told(NamedTuple):
    """What is to be told.

    Attributes:
        extensions: Which extensions of the protocol it has.
        changed: A model is loaded now, is ready or has failed.
        counted: Something is to be counted.
        regions: Others are registered.
        ended: The process is gone.
    """

    extensions: Callable[[Extensions], None]
    changed: Callable[[ModelState], None]
    counted: Callable[[Counted], None]
    regions: Callable[[RegionsChanged], None]
    ended: Callable[[], None]


class WorkerProcess:
    """A process and what is said to it. Lives in the event loop's thread.

    Args:
        setup: What it is to be.
        memory: In which bodies of calls lie.
        told: Told of what it says beside answers.
        command: How it is started; the number of its socket's descriptor follows.

    Attributes:
        ready: Done once all models are ready or have failed; fails with a :class:`ValueError` when none is ready or
            the process ends before.
        loading: Name of the model that is being loaded; None: there is none.
        ended: Done with the exit code when the process is gone.
        heard: When it last said anything, by ``time.monotonic``.
    """

    def __init__(self, setup: Setup, memory: SharedPool, told: Told, command: Sequence[str] = COMMAND) -> None:
        loop = asyncio.get_running_loop()
        self.loading: str | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._told = told
        self._numbers = count()
        self._calls: dict[int, asyncio.Future[EncodedResponse]] = {}
        self._replies = MappedSegments()
        self._marks = Marks()
        self._used_marks: set[int] = set()
        self.heard = time.monotonic()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = start(command, theirs.fileno())
        except BaseException:
            ours.close()
            self._marks.close()
            raise
        self._channel = Channel(ours, self._take, self._lost)
        self._bodies = Lender(memory, self._channel)
        self._channel.send(setup, self._marks.descriptor)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def begin(self, call: Call, body: memoryview) -> int:
        """Send a call; its number."""
        number = next(number for number in self._numbers if number % MARKS not in self._used_marks)
        span = self._bodies.lend(number, body)
        self._used_marks.add(number % MARKS)
        self._marks[number] = False
        self._calls[number] = asyncio.get_running_loop().create_future()
        self._channel.send(Begin(number, call, bytes(body) if span is None else span, request_id.get()))
        return number

    def answer(self, number: int) -> asyncio.Future[EncodedResponse]:
        """What will come back of a call that has been sent and not been given up."""
        return self._calls[number]

    def has_begun(self, number: int) -> bool:
        """Whether an engine has begun with a call."""
        return self._marks[number]

    def give_up(self, number: int) -> None:
        """Nobody waits for a call any more."""
        answer = self._calls.pop(number)
        self._used_marks.discard(number % MARKS)
        if not answer.done():
            self._channel.send(Cancel(number))
        elif not answer.cancelled():
            answer.exception()  # seen, or not wanted

    def forget_segment(self, number: int) -> None:
        """A segment of ours is gone; from any thread."""
        self._bodies.forget(number)

    def close(self) -> None:
        """End the process."""
        if self.ended.done():
            return
        self._channel.close()
        self.kill()
        self._process.wait()
        self._fail_all()
        self._marks.close()

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()

    def _take(self, message: Any, descriptor: int | None) -> None:
        self.heard = time.monotonic()
        match message:
            case Answer() | Refusal() | BodyFree():
                self._take_of_call(message)
            case Counted():
                self._told.counted(message)
            case Extensions():
                self._told.extensions(message)
            case RegionsChanged():
                self._told.regions(message)
            case ModelState():
                self.loading = None if message.ready or message.failure is not None else message.name
                self._told.changed(message)
            case AllLoaded():
                self.ready.set_result(None)
            case LoadFailed():
                self.loading = None
                self.ready.set_exception(ValueError(message.reason))
            case SegmentMade() | SegmentLost() | SegmentGone():
                self._take_of_segment(message, descriptor)

    def _take_of_call(self, message: Answer | Refusal | BodyFree) -> None:
        match message:
            case Answer():
                self._answered(message)
            case Refusal():
                self._fail(message.id, message.error or CallFailedError("the log of the engines' process says why"))
            case BodyFree():
                self._bodies.give_back(message.id)

    def _take_of_segment(self, message: SegmentMade | SegmentLost | SegmentGone, descriptor: int | None) -> None:
        match message:
            case SegmentMade():
                if not self._replies.add(message.number, message.size, descriptor):
                    self._channel.send(SegmentLost(message.number))
            case SegmentLost():
                self._bodies.announce_again(message.number)
            case SegmentGone():
                self._replies.drop(message.number)

    def _answered(self, answer: Answer) -> None:
        if isinstance(answer.body, bytes):
            body: bytes | memoryview = answer.body
        else:
            try:
                body = self._replies.view(answer.body, lambda: self._channel.send_soon(ReplyFree(answer.id)))
            except BusyError as error:
                self._channel.send(ReplyFree(answer.id))
                self._fail(answer.id, error)
                return
        waiting = self._calls.get(answer.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(EncodedResponse([body], answer.header_length))

    def _fail(self, number: int, error: Exception) -> None:
        waiting = self._calls.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)

    def _fail_all(self) -> None:
        for number in self._calls:
            self._fail(number, ProcessEndedError(begun=self.has_begun(number)))

    def _lost(self) -> None:
        self._process.kill()  # it may have closed its end and live on
        self._reaper = asyncio.create_task(self._reap())

    async def _reap(self) -> None:
        code = await asyncio.to_thread(self._process.wait)
        self._bodies.give_all_back()  # only now nobody can read there
        if not self.ready.done():
            self.ready.set_exception(
                ValueError(f"the engines' process ended while models were loaded ({ending(code)})")
            )
        self._told.ended()  # first, so that nobody who is told below takes this process for a living one
        self._fail_all()
        self._marks.close()
        self.ended.set_result(code)

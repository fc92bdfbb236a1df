"""A service, as it is called through a channel."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np

from yolo_assigner.serve.errors import BusyError, ServeError, exhausted
from yolo_assigner.serve.inference.local import LocalService, Setup, service_of
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.registry import reason_of
from yolo_assigner.serve.inference.service import Operation
from yolo_assigner.serve.inference.stats import ModelStats
from yolo_assigner.serve.logs import configure_logs, request_id
from yolo_assigner.serve.process.channel import Channel
from yolo_assigner.serve.process.child import STOPPING
from yolo_assigner.serve.process.messages import (
    Alive,
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
from yolo_assigner.serve.process.segments import INLINE_BYTES, Lender, MappedSegments, Marks, SharedPool
from yolo_assigner.serve.system import (
    freeze_gc,
    helper_threads,
    keep_large_blocks,
    lower_process_priority,
    raise_descriptor_limit,
    shorten_switch_interval,
)
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.response import EncodedResponse

CHANGES = (Operation.REGION_REGISTER, Operation.REGION_UNREGISTER, Operation.CUDA_REGISTER, Operation.CUDA_UNREGISTER)
HUNG = 70  # EX_SOFTWARE of sysexits.h
logger = logging.getLogger("serve")


class Host:
    """Answers the calls of a channel. When that is closed, the process ends.

    Args:
        end: The channel's socket.
        on_setup: Given what the service is to be.
    """

    def __init__(self, end: socket.socket, on_setup: Callable[[Setup], None]) -> None:
        self._channel = Channel(end, self._take, lambda: os._exit(0))
        self._on_setup = on_setup
        self._service: LocalService | None = None
        self._bodies = MappedSegments()
        self._replies = SharedPool(0, self._gone)  # until it is known how much is to be kept
        self._lender = Lender(self._replies, self._channel)
        self._marks: Marks | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def load(self, build: Callable[[Setup], LocalService], setup: Setup) -> bool:
        """Make the service and bring its models up, and tell so.

        Args:
            build: Makes it.
            setup: What it is to be.
        """
        self._replies = SharedPool(setup.keep_bytes, self._gone)
        self._lender = Lender(self._replies, self._channel)
        try:
            service = self._service = build(setup)
            if setup.models is not None:
                service.registry.keep(setup.models, dict(setup.failures))
            if service.regions is not None and setup.regions is not None:
                service.regions.restore(pickle.loads(setup.regions))  # noqa: S301 - an earlier process of ours wrote it
            for name, reason in service.registry.failures.items():
                self._channel.send(ModelState(name, failure=reason))
            service.registry.watch(self._known)
            self._channel.send(Extensions(tuple(service.extensions)))
            await service.load(self._changed)
        except Exception as error:
            logger.debug("models cannot be loaded", exc_info=True)
            self._channel.send(LoadFailed(reason_of(error)))
            return False
        self._channel.send(AllLoaded())
        return True

    async def watch(self, most_seconds: float) -> None:
        """End the process when an engine computes for too long: its thread cannot be ended alone.

        Args:
            most_seconds: How long one call may take; 0: for ever.
        """
        if not most_seconds:
            await asyncio.Event().wait()
        assert self._service is not None  # noqa: S101 - it has been loaded
        while True:
            self._channel.send(Alive())
            await asyncio.sleep(min(max(most_seconds / 4, 0.05), 1.0))
            for model in self._service.registry.models.values():
                seconds = model.seconds_of_call()
                if seconds > most_seconds:
                    logger.error(
                        "model %s has been computing for %.1f s, more than --engine-timeout; its process ends",
                        model.contract.name,
                        seconds,
                    )
                    os._exit(HUNG)

    async def flushed(self) -> None:
        """Wait until what was said has been sent."""
        await self._channel.flushed()

    def _mark(self, identifier: int) -> None:
        """In an engine's thread: it begins with a call."""
        assert self._marks is not None  # noqa: S101 - they came with the setup
        self._marks[identifier] = True

    def _count(self, name: str, method: str, *values: int) -> None:
        self._channel.send(Counted(name, method, values))

    def _known(self, model: Model) -> None:
        """There is a model, before it is loaded; or it has just come in use by a reload."""
        if not isinstance(model.stats, _Forwarded):
            model.stats = cast("ModelStats", _Forwarded(partial(self._count, model.contract.name)))
        if model.ready:
            self._say(model)

    def _say(self, model: Model) -> None:
        assert self._service is not None  # noqa: S101 - the model is one of its own
        contract = model.contract
        failure = self._service.registry.failures.get(contract.name)
        self._channel.send(
            ModelState(contract.name, contract, model.ready, failure, model.platform, model.dynamic_batching)
        )

    async def _changed(self, model: Model) -> None:
        self._say(model)
        await self._channel.flushed()  # what comes next may end this process at once

    def _gone(self, number: int) -> None:
        self._lender.forget(number)

    def _take(self, message: Any, descriptor: int | None) -> None:
        match message:
            case Begin():
                self._begin(message)
            case Cancel():
                if message.id in self._tasks:
                    self._tasks[message.id].cancel()
            case ReplyFree():
                self._lender.give_back(message.id)
            case SegmentMade():
                if not self._bodies.add(message.number, message.size, descriptor):
                    self._channel.send(SegmentLost(message.number))
            case SegmentLost():
                self._lender.announce_again(message.number)
            case SegmentGone():
                self._bodies.drop(message.number)
            case Setup():
                self._marks = Marks(descriptor)
                self._on_setup(message)

    def _begin(self, begin: Begin) -> None:
        try:
            body = self._body(begin)
        except BusyError as error:
            self._channel.send(BodyFree(begin.id))
            self._channel.send(Refusal(begin.id, error))
            return
        task = self._tasks[begin.id] = asyncio.create_task(self._answer(begin, body))
        task.add_done_callback(lambda _: self._tasks.pop(begin.id))

    async def _answer(self, begin: Begin, body: memoryview) -> None:
        request_id.set(begin.request_id)
        assert self._service is not None  # noqa: S101 - calls come once all is loaded
        try:
            encoded = await self._service.run(begin.call, body, lambda: self._mark(begin.id))
            if begin.call.operation in CHANGES and self._service.regions is not None:
                self._channel.send(RegionsChanged(pickle.dumps(self._service.regions.registered)))
            del body  # so that its memory is free for the caller's next request
            self._channel.send(await self._reply(begin.id, encoded))
        except ServeError as error:
            self._channel.send(Refusal(begin.id, error))
        except Exception as error:
            busy = exhausted(error)
            if busy is None:
                logger.exception("%s failed", begin.call.operation)
            else:
                logger.warning("%s is refused: %s", begin.call.operation, error)
            self._channel.send(Refusal(begin.id, busy))

    def _body(self, begin: Begin) -> memoryview:
        if isinstance(begin.body, bytes):
            return memoryview(begin.body)
        return self._bodies.view(begin.body, lambda: self._channel.send_soon(BodyFree(begin.id)))

    async def _reply(self, identifier: int, encoded: EncodedResponse) -> Answer:
        size = sum(len(chunk) for chunk in encoded.chunks)
        if size <= INLINE_BYTES:
            return Answer(identifier, b"".join(encoded.chunks), encoded.header_length)
        buffer = self._replies.take(size)
        await asyncio.to_thread(_gather, encoded.chunks, buffer)
        span = self._lender.lend(identifier, buffer[:size].data)
        assert span is not None  # noqa: S101 - it is too large for any other memory
        return Answer(identifier, span, encoded.header_length)


class _Forwarded:
    """Stands for a model's statistics, which are kept by the process that answers."""

    def __init__(self, count: Callable[..., None]) -> None:
        self._count = count

    def __getattr__(self, method: str) -> Callable[..., None]:
        return partial(self._count, method)


def _gather(chunks: list[bytes | memoryview], buffer: Array) -> None:
    """Copy without holding the interpreter."""
    end = 0
    for chunk in chunks:
        part = np.frombuffer(chunk, np.uint8)
        np.copyto(buffer[end : end + len(part)], part)
        end += len(part)


SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


def main(descriptor: int, build: Callable[[Setup], LocalService] | None = None) -> None:
    """Serve calls until the other end of a socket is closed. Does not return.

    Args:
        descriptor: Of the socket.
        build: Makes the service; that of the setup's artifacts when None.
    """
    for sign in STOPPING:
        signal.signal(sign, signal.SIG_IGN)  # sent to all processes of a group; this one ends after the server
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    os.set_inheritable(descriptor, False)
    if sys.platform == "linux":
        # Even when all threads are inside native code for long.
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    lower_process_priority()
    shorten_switch_interval()
    keep_large_blocks()
    raise_descriptor_limit()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(socket.socket(fileno=descriptor), build or service_of))


async def _serve(end: socket.socket, build: Callable[[Setup], LocalService]) -> None:
    asyncio.get_running_loop().set_default_executor(helper_threads())
    setups: asyncio.Queue[Setup] = asyncio.Queue()
    host = Host(end, setups.put_nowait)
    setup = await setups.get()
    configure_logs(setup.log_level, setup.log_format)
    if not await host.load(build, setup):
        await host.flushed()
        os._exit(1)
    freeze_gc()
    logging.getLogger("serve").debug("the engines' process is ready")
    await host.watch(setup.engine_timeout)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()

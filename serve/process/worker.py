"""What runs in the worker: a service whose calls come through a channel."""

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
from typing import Any

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
    Answer,
    CancelCall,
    Loaded,
    ModelState,
    Recorded,
    Refusal,
    RegionsChanged,
    Span,
    StartCall,
)
from yolo_assigner.serve.process.segments import INLINE_BYTES, LeaseTable, SharedPool, StartedFlags
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

REGION_CHANGES = (Operation.REGION_REGISTER, Operation.REGION_UNREGISTER)
HUNG = 70  # EX_SOFTWARE of sysexits.h
SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
logger = logging.getLogger("serve")


class Recorder(ModelStats):
    """Collects what the statistics of a model are to record, until an answer takes it to the server's process."""

    def __init__(self) -> None:
        super().__init__()
        self._executed: list[tuple[int, int]] = []
        self._called: list[tuple[int, int]] = []
        self._carried: list[tuple[int, int]] = []
        self._failed: list[int] = []

    def executed(self, queue_ns: int, engine_ns: int) -> None:
        """Record that the engine has computed a request."""
        self._executed.append((queue_ns, engine_ns))

    def called(self, images: int, engine_ns: int) -> None:
        """Record a call of the engine, for one or more requests."""
        self._called.append((images, engine_ns))

    def carried(self, input_ns: int, output_ns: int) -> None:
        """Record how long it took to decode a request and to encode its outputs."""
        self._carried.append((input_ns, output_ns))

    def failed(self, total_ns: int) -> None:
        """Record that a request failed."""
        self._failed.append(total_ns)

    def take(self, model: str) -> Recorded | None:
        """Return what was recorded since the last time; None when that is nothing."""
        lists = (self._executed, self._called, self._carried, self._failed)
        if not any(lists):
            return None
        recorded = Recorded(
            model, tuple(self._executed), tuple(self._called), tuple(self._carried), tuple(self._failed)
        )
        for one in lists:
            one.clear()
        return recorded


class Worker:
    """Answers the calls of a channel. When that is closed, the process ends.

    Args:
        end: The channel's socket.

    Attributes:
        setup: Done with what the service is to load, which is the first message.
    """

    def __init__(self, end: socket.socket) -> None:
        self.setup: asyncio.Future[Setup] = asyncio.get_running_loop().create_future()
        self._channel = Channel(end, self._take, lambda: os._exit(0))
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._recorders: dict[str, Recorder] = {}

    async def load(self, build: Callable[[Setup], LocalService], setup: Setup) -> bool:
        """Build the service, load its models, and report both.

        Args:
            build: Builds the service.
            setup: What it is to load.

        Returns:
            Whether a model was loaded.
        """
        try:
            service = self._service = build(setup)
            if setup.models is not None:
                service.registry.keep(setup.models, dict(setup.failures))
            if service.regions is not None and setup.regions is not None:
                service.regions.registered = pickle.loads(setup.regions)  # noqa: S301 - an earlier worker wrote it
            for name, reason in service.registry.failures.items():
                self._channel.send(ModelState(name, failure=reason))
            service.registry.watch(self._watch_model)
            await service.load(self._report_state)
        except Exception as error:
            logger.debug("models cannot be loaded", exc_info=True)
            self._channel.send(Loaded(failure=reason_of(error)))
            return False
        self._channel.send(Loaded())
        return True

    async def watch(self, most_seconds: float) -> None:
        """End the process when an engine computes for too long: its thread cannot be ended alone.

        Args:
            most_seconds: How long one call of an engine may take; 0 for ever.
        """
        if not most_seconds:
            await asyncio.Event().wait()
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
        """Wait until all messages have been sent."""
        await self._channel.flushed()

    def _watch_model(self, model: Model) -> None:
        """Take note of a model that is known now, and not loaded yet; or that a reload has just put into use."""
        model.stats = self._recorders.setdefault(model.contract.name, Recorder())
        if model.ready:
            self._send_state(model)

    async def _report_state(self, model: Model) -> None:
        self._send_state(model)
        await self._channel.flushed()  # loading a model may end this process at once

    def _send_state(self, model: Model) -> None:
        contract = model.contract
        failure = self._service.registry.failures.get(contract.name)
        state = ModelState(contract.name, contract, model.ready, failure, model.platform, model.dynamic_batching)
        self._channel.send(state)

    def _take(self, message: Any, descriptor: int | None) -> None:
        match message:
            case StartCall():
                self._start(message)
            case CancelCall():
                if message.id in self._tasks:
                    self._tasks[message.id].cancel()
            case Setup():
                self._replies = SharedPool(message.keep_bytes, self._forget_segment)
                self._leases = LeaseTable(self._replies, self._channel)
                self._started = StartedFlags(descriptor)
                self.setup.set_result(message)
            case _:
                self._leases.handle(message, descriptor)

    def _forget_segment(self, number: int) -> None:
        self._leases.forget(number)

    def _start(self, start: StartCall) -> None:
        try:
            body = self._leases.borrow(start.id, start.body)
        except BusyError as error:
            self._refuse(start.id, error)
            return
        task = self._tasks[start.id] = asyncio.create_task(self._run(start, body))
        task.add_done_callback(lambda _: self._tasks.pop(start.id))

    async def _run(self, start: StartCall, body: memoryview) -> None:
        request_id.set(start.request_id)
        try:
            encoded = await self._encoded(start, body)
            del body  # its memory is free for the caller's next request then
            reply = await self._lend(start.id, encoded)
            self._channel.send(Answer(start.id, reply, encoded.header_length, self._recorded()))
        except ServeError as error:
            self._refuse(start.id, error)
        except asyncio.CancelledError:
            self._refuse(start.id, None)
            raise
        except Exception as error:
            busy = exhausted(error)
            if busy is None:
                logger.exception("%s failed", start.call.operation)
            else:
                logger.warning("%s is refused: %s", start.call.operation, error)
            self._refuse(start.id, busy)

    async def _encoded(self, start: StartCall, body: memoryview) -> EncodedResponse:
        service, call = self._service, start.call
        if call.operation == Operation.LOAD:
            await service.reload(call.target or "")
            return EncodedResponse([b"{}"], None)
        encoded = await service.run(call, body, lambda: self._set_started(start.id))
        if call.operation in REGION_CHANGES and service.regions is not None:
            self._channel.send(RegionsChanged(pickle.dumps(service.regions.registered)))
        return encoded

    def _set_started(self, call: int) -> None:
        self._started[call] = True

    def _refuse(self, call: int, error: ServeError | None) -> None:
        self._channel.send(Refusal(call, error, self._recorded()))

    def _recorded(self) -> tuple[Recorded, ...]:
        taken = (recorder.take(model) for model, recorder in self._recorders.items())
        return tuple(recorded for recorded in taken if recorded is not None)

    async def _lend(self, call: int, encoded: EncodedResponse) -> bytes | Span:
        size = sum(len(chunk) for chunk in encoded.chunks)
        if size <= INLINE_BYTES:
            return b"".join(encoded.chunks)
        buffer = self._replies.take(size)
        await asyncio.to_thread(_gather, encoded.chunks, buffer)
        return self._leases.lend(call, buffer[:size].data)


def _gather(chunks: list[bytes | memoryview], buffer: Array) -> None:
    """Copy chunks one after the other, without holding the interpreter."""
    end = 0
    for chunk in chunks:
        part = np.frombuffer(chunk, np.uint8)
        np.copyto(buffer[end : end + len(part)], part)
        end += len(part)


def main(descriptor: int, build: Callable[[Setup], LocalService] | None = None) -> None:
    """Answer calls until the other end of a socket is closed. Does not return.

    Args:
        descriptor: Descriptor of the socket.
        build: Builds the service; None: from the setup's artifacts.
    """
    for sign in STOPPING:
        signal.signal(sign, signal.SIG_IGN)  # sent to all processes of a group; this one ends after the server
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    os.set_inheritable(descriptor, False)
    if sys.platform == "linux":
        # Works also when all threads are inside native code for long.
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    lower_process_priority()
    shorten_switch_interval()
    keep_large_blocks()
    raise_descriptor_limit()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(socket.socket(fileno=descriptor), build or service_of))


async def _serve(end: socket.socket, build: Callable[[Setup], LocalService]) -> None:
    asyncio.get_running_loop().set_default_executor(helper_threads())
    worker = Worker(end)
    setup = await worker.setup
    configure_logs(setup.log_level, setup.log_format)
    if not await worker.load(build, setup):
        await worker.flushed()
        os._exit(1)
    freeze_gc()
    logger.debug("the engines' process is ready")
    await worker.watch(setup.engine_timeout)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()

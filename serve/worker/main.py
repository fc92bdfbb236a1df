"""What the process that computes does from its begin to its end."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

from yolo_assigner.serve.compute.local import LocalService
from yolo_assigner.serve.compute.setup import Setup, service_of
from yolo_assigner.serve.engine.system import allow_descriptors, keep_large_blocks
from yolo_assigner.serve.engine.threads import all_give_way, helpers, settle, switch_quickly
from yolo_assigner.serve.http.logs import configure_logs
from yolo_assigner.serve.worker.host import Host
from yolo_assigner.serve.worker.start import STOPPING

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
    all_give_way()
    switch_quickly()
    keep_large_blocks()
    allow_descriptors()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(socket.socket(fileno=descriptor), build or service_of))


async def _serve(end: socket.socket, build: Callable[[Setup], LocalService]) -> None:
    asyncio.get_running_loop().set_default_executor(helpers())
    setups: asyncio.Queue[Setup] = asyncio.Queue()
    host = Host(end, setups.put_nowait)
    setup = await setups.get()
    configure_logs(setup.log_level, setup.log_format)
    if not await host.load(build, setup):
        await host.flushed()
        os._exit(1)
    settle()
    logging.getLogger("serve").debug("the engines' process is ready")
    await host.watch(setup.engine_timeout)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()

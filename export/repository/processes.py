"""One process per build: a build that kills its process spoils no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import CancelledError
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

from yolo_assigner.export.repository.plan import OnnxTarget, Target
from yolo_assigner.export.repository.state import STATE_FOLDER
from yolo_assigner.export.to_tensorrt.contract import ENGINE_FOLDER
from yolo_assigner.export.to_tensorrt.log import BuildError

# A fork would copy the locks that other threads hold.
CONTEXT = multiprocessing.get_context("spawn")


class Result(NamedTuple):
    """How a build went.

    Attributes:
        seconds: How long it took.
        failure: Why there is no artefact; empty when there is one.
    """

    seconds: float
    failure: str = ""


class Processes:
    """The processes of builds, which other threads may stop.

    Not a ``ProcessPoolExecutor``: one process that dies fails all builds of such a pool.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._running: list[SpawnProcess] = []

    def build(self, target: Target, folder: Path) -> Result:
        """Build an artefact in a process of its own and wait for it.

        Args:
            target: The artefact.
            folder: The repository.

        Raises:
            CancelledError: All builds were stopped.
        """
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_work, args=(sender, target, folder), daemon=True)
        with self._lock:
            if self._stopped:
                raise CancelledError
            process.start()
            self._running.append(process)
        sender.close()
        try:
            result: Result = receiver.recv()
        except (EOFError, OSError) as error:
            process.join()
            if self._stopped:
                raise CancelledError from error
            return Result(0.0, _death(process.exitcode or 0))
        process.join()
        return result

    def stop(self) -> None:
        """End all builds, and begin none from now on."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def leave_interrupts_to_main() -> None:
    """Block Ctrl-C in this thread and in the processes it starts; the main thread gets it and stops them."""
    if sys.platform != "win32":
        resource_tracker.ensure_running()  # else the first process would start it, which unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _death(code: int) -> str:
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"its process died ({how}), perhaps for want of memory; run again, with fewer --jobs if so"


def _work(sender: Connection, target: Target, folder: Path) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    started = time.perf_counter()
    failure = ""
    try:
        _build(target, folder)
    except (BuildError, ValueError, OSError) as error:
        failure = str(error)  # written for users
    except Exception:
        failure = traceback.format_exc().rstrip()
    sender.send(Result(time.perf_counter() - started, failure))


def _exit_with_parent() -> None:
    """Exit when the parent is killed: the build must not go on writing into the repository."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _build(target: Target, folder: Path) -> None:
    if isinstance(target, OnnxTarget):
        from yolo_assigner.export.to_onnx.exporter import export_onnx

        export_onnx(
            target.kind,
            target.hyperparameters,
            folder,
            name=target.name,
            implementation=target.implementation,
            weights=target.weights,
            precision=target.precision,
        )
        return
    from yolo_assigner.export.to_tensorrt.build import build_engine

    build_engine(
        folder / target.model.label,
        folder / ENGINE_FOLDER,
        runtime=target.runtime,
        precision=target.model.precision,
        profiles=target.requests,
        timing_cache=folder / STATE_FOLDER / "tensorrt.timings",
        compute_capabilities=target.compute_capabilities,
    )

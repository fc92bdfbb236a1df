"""Processes that build, each one artefact at a time, so that what kills one spoils no other's work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from yolo_assigner.export.repository.plan import OnnxTarget, Target
from yolo_assigner.export.to_tensorrt.contract import ENGINE_FOLDER

TIMINGS = "tensorrt.timings"


class Result(NamedTuple):
    """How a build went.

    Attributes:
        seconds: How long it took.
        failure: Why there is no artefact; empty when there is one.
    """

    seconds: float
    failure: str = ""


class Worker:
    """A process that is started when it is first needed.

    Each has a pool of its own: a pool whose process dies loses all its builds and does not say which was at fault.
    """

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._context = _Context()

    def submit(self, target: Target, folder: Path, state: Path) -> Future[Result]:
        """Begin a build; the future fails with ``BrokenProcessPool`` when the process dies. For the main thread."""
        if self._pool is None:
            self._context = _Context()
            self._pool = ProcessPoolExecutor(1, mp_context=self._context, initializer=_begin)
        with _uninterrupted():
            return self._pool.submit(build, target, folder, state)

    def close(self, *, at_once: bool = False) -> str:
        """End the process; the next build gets a new one.

        Args:
            at_once: In the middle of a build, too.

        Returns:
            How it ended, for example ``SIGKILL`` or ``exit code 1``; empty when there was none.
        """
        if self._pool is None:
            return ""
        process = self._context.started
        if process is not None and at_once:
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        if process is None:
            return ""
        process.join()
        code = process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back: a pool that is interrupted while it starts its process can neither be used nor closed."""
    came: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(*came[0])


class _Context(SpawnContext):
    """Starts processes anew, for a fork would copy the locks that threads hold, and remembers the one it started.

    ``multiprocessing.active_children`` does not list a process that has ended before it is asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started: SpawnProcess | None = None

    def Process(self, *arguments: Any, **named: Any) -> SpawnProcess:  # type: ignore[override]
        """Make a process, which the pool starts."""
        self.started = SpawnProcess(*arguments, **named)
        return self.started


def build(target: Target, folder: Path, state: Path) -> Result:
    """Build an artefact in this process.

    Args:
        target: The artefact.
        folder: The repository.
        state: Folder for what makes later builds faster.
    """
    started = time.perf_counter()
    failure = ""
    try:
        _build(target, folder, state)
    except Exception as error:
        failure = _reason(error)
    return Result(time.perf_counter() - started, failure)


def _build(target: Target, folder: Path, state: Path) -> None:
    if isinstance(target, OnnxTarget):
        from yolo_assigner.export.to_onnx.exporter import export_onnx

        export_onnx(
            target.kind,
            target.numbers,
            folder,
            name=target.name,
            implementation=target.formulation,
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
        timing_cache=state / TIMINGS,
        compute_capabilities=target.compute_capabilities,
    )


def _reason(error: Exception) -> str:
    """The message where it was written for users, else all that helps to find the cause."""
    from yolo_assigner.export.to_tensorrt.log import BuildError

    if isinstance(error, (BuildError, ValueError, OSError)):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def _begin() -> None:
    """What a process does first."""
    # Ctrl-C reaches all processes of a terminal; the one that started the others acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Nobody else ends this process when its parent is killed, and it would go on writing into the repository."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

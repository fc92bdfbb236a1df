"""How far a build is, and how to end it early. TensorRT reports from any thread."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """Where progress is shown."""

    def show(self, phases: Sequence[str], share: float) -> None:
        """Show how far the build is.

        Args:
            phases: What is being done, from the whole to its innermost part.
            share: Of the whole that is done, 0 to 1, never falling while the whole stays the same.
        """


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildWatch:
    """The phases of a build as TensorRT reports them.

    Args:
        progress: Where they are shown. What it raises ends the build and is kept in ``failure``.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.failure: BaseException | None = None
        self._progress = progress
        self._cancelled = False
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0

    def cancel(self) -> None:
        """Have TensorRT end the build at the next step."""
        self._cancelled = True

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            if parent is None:
                self._share = 0.0
            self._phases[name] = _Phase(parent, steps)
            self._show(name)

    def step(self, name: str, step: int) -> bool:
        """A step of a phase is done; whether to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
                self._show(name)
        return not self._cancelled

    def finish(self, name: str) -> None:
        """A phase is over, perhaps before all of its steps."""
        with self._lock:
            self._phases.pop(name, None)

    def _show(self, name: str) -> None:
        if self._progress is None or self._cancelled:
            return
        chain = [name]
        while (parent := self._phases[chain[0]].parent) in self._phases:
            chain.insert(0, parent)
        self._share = max(self._share, self._done(chain[0]))
        try:
            self._progress.show(chain, self._share)
        except BaseException as error:  # it must not pass through TensorRT
            self.failure = error
            self.cancel()

    def _done(self, name: str) -> float:
        inner = (self._done(child) for child, phase in self._phases.items() if phase.parent == name)
        phase = self._phases[name]
        return min((phase.done + max(inner, default=0.0)) / phase.steps, 1.0)


def make_monitor(library: Any, watch: BuildWatch) -> Any:
    """A progress monitor for TensorRT.

    Args:
        library: The module of TensorRT or TensorRT-RTX.
        watch: What it reports to.
    """

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watch.finish(phase_name)

    return Monitor()


CLEAR = "\r\x1b[K"


class TerminalLine:
    """A line that is rewritten: how much is done, and with what it goes on.

    Args:
        stream: The terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = ""

    def show(self, phases: Sequence[str], share: float) -> None:
        """Rewrite the line where it differs."""
        # A line as wide as the terminal wraps on some, and would stay.
        text = f"{share:4.0%}  {phases[-1]}"[: shutil.get_terminal_size().columns - 1]
        if text != self._shown:
            self._shown = text
            self._stream.write(CLEAR + text)
            self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._shown:
            self._stream.write(CLEAR)
            self._stream.flush()


class PhaseLines:
    """A line for each part of the whole, nothing for parts of parts.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: Sequence[str] = ()

    def show(self, phases: Sequence[str], share: float) -> None:
        """Write a line when another part begins."""
        if len(phases) > 1 and phases[:2] != self._shown:
            self._shown = phases[:2]
            self._stream.write(f"{share:4.0%}  {phases[1]}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave all as it is."""


def progress_display(stream: TextIO) -> TerminalLine | PhaseLines:
    """What suits a stream."""
    return TerminalLine(stream) if stream.isatty() else PhaseLines(stream)

"""Progress of a build: what TensorRT reports, from any thread, how it is displayed, and how a build is cancelled."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

# Returns to the start of a terminal's line and clears it.
CLEAR = "\r\x1b[K"


class Progress(Protocol):
    """Display of progress."""

    def show(self, phases: Sequence[str], share: float) -> None:
        """Show the progress of a build.

        Args:
            phases: Names of the current phases, from the outermost to the innermost.
            share: Completed share of the outermost phase, 0 to 1; does not decrease during that phase.
        """


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildWatch:
    """Tracks the phases of a build as TensorRT reports them.

    Args:
        progress: Display. An exception that it raises cancels the build.

    Attributes:
        failure: The exception that the display raised, or None.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.failure: BaseException | None = None
        self._progress = progress
        self._cancelled = False
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0

    def cancel(self) -> None:
        """Request that TensorRT ends the build at the next step."""
        self._cancelled = True

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase."""
        with self._lock:
            if parent is None:
                self._share = 0.0
            self._phases[name] = _Phase(parent, steps)
            self._show(name)

    def step(self, name: str, step: int) -> bool:
        """Record a completed step and return whether to continue the build."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
                self._show(name)
        return not self._cancelled

    def finish(self, name: str) -> None:
        """End a phase, possibly before all of its steps are completed."""
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
        except BaseException as error:  # must not propagate through TensorRT
            self.failure = error
            self.cancel()

    def _done(self, name: str) -> float:
        inner = (self._done(child) for child, phase in self._phases.items() if phase.parent == name)
        phase = self._phases[name]
        return min((phase.done + max(inner, default=0.0)) / phase.steps, 1.0)


def make_monitor(library: Any, watch: BuildWatch) -> Any:
    """Create a progress monitor for TensorRT that reports to ``watch``."""

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


class TerminalLine:
    """Display on a terminal: one line with the share and the innermost phase, rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = ""

    def show(self, phases: Sequence[str], share: float) -> None:
        """Rewrite the line if it changed."""
        # A line as wide as the terminal would wrap on some terminals and could not be cleared.
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
    """Display in a file: one line for each phase of the second level."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: Sequence[str] = ()

    def show(self, phases: Sequence[str], share: float) -> None:
        """Write a line when another phase begins."""
        if len(phases) > 1 and phases[:2] != self._shown:
            self._shown = phases[:2]
            self._stream.write(f"{share:4.0%}  {phases[1]}\n")
            self._stream.flush()

    def close(self) -> None:
        """Keep the written lines."""


def progress_display(stream: TextIO) -> TerminalLine | PhaseLines:
    """Create the display for a stream."""
    return TerminalLine(stream) if stream.isatty() else PhaseLines(stream)

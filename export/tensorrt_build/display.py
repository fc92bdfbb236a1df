"""Progress for people: one line that is rewritten on a terminal, one line per phase elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TextIO

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

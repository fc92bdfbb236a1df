"""Errors and warnings that TensorRT logs during a build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# Number of log lines of each severity that an error quotes.
QUOTED = 5


class BuildError(RuntimeError):
    """TensorRT built no engine; the message quotes its reasons."""


class BuildLog:
    """Errors and warnings of one build, in order and without repetitions.

    Args:
        warn: Called with each new warning.
    """

    def __init__(self, warn: Callable[[str], None] | None = None) -> None:
        # Dictionaries as ordered sets, since the parser repeats messages.
        self._errors: dict[str, None] = {}
        self._warnings: dict[str, None] = {}
        self._warn = warn

    def add_error(self, text: str) -> None:
        """Record an error."""
        self._errors.setdefault(text)

    def add_warning(self, text: str) -> None:
        """Record a warning and report it if it is new."""
        if text not in self._warnings:
            self._warnings.setdefault(text)
            if self._warn:
                self._warn(text)

    def failure(self, what: str, reasons: Sequence[str] = ()) -> BuildError:
        """Create the error to raise.

        Args:
            what: What failed, the first line of the message.
            reasons: Lines of explanation; the logged errors if empty.
        """
        lines = [what, *_quote(reasons or list(self._errors))]
        if self._warnings:
            lines += ["TensorRT warned before:", *_quote(list(self._warnings))]
        return BuildError("\n".join(lines))


def _quote(lines: Sequence[str]) -> list[str]:
    """Indent the first few lines and count the rest."""
    shown = [f"  {' '.join(line.split())}" for line in lines[:QUOTED]]
    return shown + [f"  and {len(lines) - QUOTED} more"] * (len(lines) > QUOTED)


def make_logger(library: Any, log: BuildLog) -> Any:
    """Create a logger for TensorRT that records errors and warnings in ``log`` and drops the rest."""
    severity = library.ILogger.Severity

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                log.add_error(message)
            elif level == severity.WARNING:
                log.add_warning(message)

    return Logger()

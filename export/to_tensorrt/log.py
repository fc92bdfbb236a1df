"""What TensorRT says while it builds: kept, and shown when it is of use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# Lines of each sort that an error quotes.
QUOTED = 5


class BuildError(RuntimeError):
    """TensorRT built no engine; the message says what it objects to."""


class BuildLog:
    """Errors and warnings of one build, in order and each once.

    Args:
        warn: Called with each warning as it comes.
    """

    def __init__(self, warn: Callable[[str], None] | None = None) -> None:
        # Dictionaries for their order: the parser repeats itself.
        self._errors: dict[str, None] = {}
        self._warnings: dict[str, None] = {}
        self._warn = warn

    def add_error(self, text: str) -> None:
        """Keep an error."""
        self._errors.setdefault(text)

    def add_warning(self, text: str) -> None:
        """Keep a warning, and pass it on the first time."""
        if text not in self._warnings:
            self._warnings.setdefault(text)
            if self._warn:
                self._warn(text)

    def failure(self, what: str, reasons: Sequence[str] = ()) -> BuildError:
        """The error to raise.

        Args:
            what: What failed.
            reasons: Why; the errors that were logged when there are none.
        """
        lines = [what, *quote(reasons or list(self._errors))]
        if self._warnings:
            lines += ["TensorRT warned before:", *quote(list(self._warnings))]
        return BuildError("\n".join(lines))


def quote(lines: Sequence[str]) -> list[str]:
    """The first few lines, indented, and how many there are more."""
    shown = [f"  {' '.join(line.split())}" for line in lines[:QUOTED]]
    return shown + [f"  and {len(lines) - QUOTED} more"] * (len(lines) > QUOTED)


def make_logger(library: Any, log: BuildLog) -> Any:
    """A logger for TensorRT that keeps errors and warnings and drops the rest.

    Args:
        library: The module of TensorRT or TensorRT-RTX.
        log: Where they are kept.
    """
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

"""Tables in Markdown, results in JSON, and facts about the machine."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[1] / "results"
YES_NO = {True: "yes", False: "NO"}
SERVER_PACKAGES = ("uvicorn", "httptools", "uvloop", "fastapi", "numpy")


def row(cells: Iterable[object]) -> str:
    """One line of a table in Markdown."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    return "\n".join(map(row, (head, ["---"] * len(head), *rows)))


class Goal(NamedTuple):
    """A figure and its goal.

    Attributes:
        what: Name of the figure.
        reached: The figure.
        limit: The goal.
        at_least: Whether the figure must be at least the limit; otherwise at most.
    """

    what: str
    reached: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit


def goals_table(goals: Iterable[Goal], digits: str) -> str:
    """Goals as a table.

    Args:
        goals: The goals.
        digits: Format of the figures.
    """
    rows = (
        (goal.what, f"{'>=' if goal.at_least else '<='} {goal.limit:g}", f"{goal.reached:{digits}}", YES_NO[goal.met])
        for goal in goals
    )
    return table(("what", "wanted", "reached", "met"), rows)


def write_json(path: Path, results: Any) -> None:
    """Write results to a file whose folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """Name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def versions(packages: Iterable[str] = SERVER_PACKAGES) -> dict[str, str]:
    """Versions of installed packages, by default of those that decide the server's speed."""
    return {package: version(package) for package in packages}


def machine() -> dict[str, str]:
    """Versions of Python and of the server's packages."""
    return {"python": platform.python_version(), **versions()}


def first_line(error: BaseException) -> str:
    """First line of an error's text, at most 300 characters."""
    lines = str(error).strip().splitlines() or ["no text"]
    return lines[0][:300]

"""Results in one JSON file, written after each unit of work, so that a crash loses nothing that was measured.

The file has one entry for each set of code, device and packages. Under another set an entry is added, and what was
measured before stays.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Results:
    """The file of results, and in it the entry of one key.

    Args:
        path: The file, which is read if it exists.
        key: Code, device and versions that figures depend on.

    Attributes:
        entries: Figures of this key by the units' names. One without figures has a ``reason``; where that is a failure
            also ``failed``, and ``broke`` where the device or the process was unusable afterwards.
        running: Name of the unit that is running, or was when its process died; else empty.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path, self._key = path, dict(key)
        self.entries: dict[str, Entry] = {}
        self.reload()

    def reload(self) -> None:
        """Read what another process has written.

        Raises:
            ValueError: The file holds something else.
        """
        try:
            runs = json.loads(self._path.read_text(encoding="utf-8"))["runs"] if self._path.exists() else []
            self._others = [run for run in runs if run["key"] != self._key]
            own: dict[str, Any] = next((run for run in runs if run["key"] == self._key), {})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path} is no file of results ({error!r}); move it or name another") from error
        self.entries = own.get("entries", {})
        self.running = own.get("running", "")

    @property
    def others(self) -> list[dict[str, Entry]]:
        """Entries of the other keys, the oldest first."""
        return [run["entries"] for run in self._others]

    def begin(self, name: str) -> None:
        """Record which unit is running, so that the one in which a process dies is known."""
        self.running = name
        self._write()

    def keep(self, name: str, entry: Entry) -> None:
        """Record the entry of a unit that has ended."""
        self.running, self.entries[name] = "", entry
        self._write()

    def end_running(self, contender: Mapping[str, str], reason: str, *, broke: bool) -> None:
        """Record why the running unit, if there is one, was not finished.

        Args:
            contender: The units' contenders.
            reason: Why not.
            broke: Whether its contender is to be left out from now on.
        """
        if name := self.running:
            self.keep(name, failure(contender.get(name, ""), reason, broke))

    def broken(self) -> dict[str, str]:
        """Contenders that broke the device or their process, with the unit in which they did."""
        return {entry["contender"]: name for name, entry in self.entries.items() if entry.get("broke")}

    def retry(self, again: Collection[str]) -> None:
        """Drop entries without figures, so that they are tried anew.

        Args:
            again: Contenders that broke something, and are to run all the same.
        """
        self.entries = {
            name: entry
            for name, entry in self.entries.items()
            if "reason" not in entry or (entry.get("broke") and entry["contender"] not in again)
        }
        self._write()

    def _write(self) -> None:
        runs = [*self._others, {"key": self._key, "running": self.running, "entries": self.entries}]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self._path)  # atomically


def failure(contender: str, reason: str, broke: bool = False) -> Entry:
    """The entry of a unit that failed."""
    return {"contender": contender, "reason": reason, "failed": True, **({"broke": True} if broke else {})}

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
STARTED = "its process ended in it, or it hung"


class Results:
    """The file of results, and in it the entry of one key.

    Args:
        path: The file, which is read if it exists.
        key: Code, device and versions that figures depend on.

    Attributes:
        entries: Figures of this key by the units' names. One without figures has a ``reason``; where that is a failure
            also ``failed``, and ``broke`` where the device or the process was unusable afterwards.
        others: Entries of the other keys, the oldest first.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path, self._key = path, dict(key)
        self.reload()

    def reload(self) -> None:
        """Read what another process has written."""
        try:
            runs = json.loads(self._path.read_text(encoding="utf-8"))["runs"] if self._path.exists() else []
            found = {json.dumps(run["key"]): run["entries"] for run in runs}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path} is no file of results ({error!r}); move it or name another") from error
        self.entries: dict[str, Entry] = found.pop(json.dumps(self._key), {})
        self._others = found

    @property
    def others(self) -> list[dict[str, Entry]]:
        """Entries of the other keys."""
        return list(self._others.values())

    def begin(self, name: str, contender: str) -> None:
        """Record a unit as broken before it runs: so it remains if its process dies."""
        self.keep(name, failure(contender, STARTED, broke=True))

    def keep(self, name: str, entry: Entry) -> None:
        """Record the entry of a unit that has ended."""
        self.entries[name] = entry
        self._write()

    def drop_unfinished(self) -> None:
        """Forget a unit that was stopped for lack of time."""
        self.entries = {name: entry for name, entry in self.entries.items() if entry.get("reason") != STARTED}
        self._write()

    def broken(self) -> dict[str, str]:
        """Contenders that broke the device or their process, with the unit in which they did."""
        return {entry["contender"]: name for name, entry in self.entries.items() if entry.get("broke")}

    def retry(self, again: Collection[str]) -> None:
        """Drop entries without figures, so that they are tried anew; of those that broke something only ``again``."""
        self.entries = {
            name: entry
            for name, entry in self.entries.items()
            if "reason" not in entry or (entry.get("broke") and entry["contender"] not in again)
        }
        self._write()

    def _write(self) -> None:
        runs = [{"key": json.loads(key), "entries": entries} for key, entries in self._others.items()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        text = json.dumps({"runs": [*runs, {"key": self._key, "entries": self.entries}]}, indent=1)
        temporary.write_text(f"{text}\n", encoding="utf-8")
        temporary.replace(self._path)  # atomically


def failure(contender: str, reason: str, broke: bool = False) -> Entry:
    """The entry of a unit that failed."""
    return {"contender": contender, "reason": reason, "failed": True, **({"broke": True} if broke else {})}

"""Results in one JSON file, a part at a time, so that what was measured is kept whatever happens next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a part may be found to be.
DONE, FAILED, RUNNING = "done", "failed", "running"


class Store:
    """The file.

    Args:
        path: Read when it is there.
        key: What results depend on: code, device, versions. Parts measured under another key count as not there.

    Raises:
        ValueError: The file is not one of these.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path = path
        self._key = dict(key)
        self.parts: dict[str, dict[str, Any]] = {}
        self.reload()

    def reload(self) -> None:
        """Read what another process has written since.

        Raises:
            ValueError: The file is not one of these.
        """
        if not self._path.exists():
            return
        try:
            self.parts = dict(json.loads(self._path.read_text(encoding="utf-8"))["parts"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path} is no file of results ({error!r}); move it or name another") from error

    def is_done(self, name: str) -> bool:
        """It was measured under this key."""
        part = self.parts.get(name, {})
        return part.get("state") == DONE and part.get("key") == self._key

    def result(self, name: str) -> Any:
        """What a part gave, or None where it is not done."""
        return self.parts[name]["result"] if self.is_done(name) else None

    def begin(self, name: str) -> None:
        """Note that a part is under way: should the process die, one sees in which."""
        self._put(name, {"state": RUNNING})

    def finish(self, name: str, result: Any, seconds: float) -> None:
        """Keep what a part gave."""
        self._put(name, {"state": DONE, "seconds": round(seconds, 1), "result": result})

    def fail(self, name: str, reason: str) -> None:
        """Keep why a part gave nothing."""
        self._put(name, {"state": FAILED, "reason": reason})

    def state(self, name: str) -> str:
        """``done``, ``failed`` or ``running`` under this key, else empty."""
        part = self.parts.get(name, {})
        return str(part.get("state", "")) if part.get("key") == self._key else ""

    def under_way(self) -> list[str]:
        """Parts that were begun and neither finished nor failed."""
        return [name for name in self.parts if self.state(name) == RUNNING]

    def reason(self, name: str) -> str:
        """Why a part gave nothing, or empty."""
        return str(self.parts.get(name, {}).get("reason", "")) if self.state(name) == FAILED else ""

    def _put(self, name: str, part: dict[str, Any]) -> None:
        self.parts[name] = {"key": self._key, **part}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"parts": self.parts}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self._path)  # whole or not at all

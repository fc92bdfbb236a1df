"""Results in one JSON file, a contender at a time, so that what was measured is kept whatever happens next."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
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
        self._broken: dict[str, dict[str, Any]] = {}
        self.reload()

    def reload(self) -> None:
        """Read what another process has written since.

        Raises:
            ValueError: The file is not one of these.
        """
        if not self._path.exists():
            return
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self.parts = dict(content["parts"])
            self._broken = dict(content.get("broken", {}))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path} is no file of results ({error!r}); move it or name another") from error

    def is_done(self, name: str) -> bool:
        """It was measured under this key."""
        return self.state(name) == DONE

    def result(self, name: str) -> Any:
        """What a part gave, or None where it is not done."""
        return self.parts[name]["result"] if self.is_done(name) else None

    def begin(self, name: str) -> None:
        """Note that a part is under way: should the process die, one sees in which. Entries of it stay."""
        self._put(name, {"state": RUNNING, **self._kept(name), "left": []})

    def finish(self, name: str, result: Any, seconds: float) -> None:
        """Keep what a part gave; its entries are in that, and needed no more unless a contender was left out."""
        kept = self._kept(name)
        done = {"state": DONE, "seconds": round(seconds, 1), "result": result}
        self._put(name, {**done, **(kept if kept["left"] else {})})

    def leave(self, part: str, contender: str) -> None:
        """Note that a part under way goes on without a contender."""
        kept = self._kept(part)
        self._put(part, {"state": RUNNING, **kept, "left": [*kept["left"], contender]})

    def reopen(self, without: Collection[str]) -> None:
        """Parts done without a contender that is left out no longer are to be gone on with."""
        for name in [name for name in self.parts if self.is_done(name)]:
            if any(one not in without and not self.broken(one) for one in self._kept(name)["left"]):
                wanted = {"state": FAILED, "reason": "a contender was left out: run the command again", "again": True}
                self._put(name, {**wanted, **self._kept(name)})

    def fail(self, name: str, reason: str, *, broke: bool = False) -> None:
        """Keep why a part gave nothing yet, and the entries that it has.

        Args:
            name: Of the part.
            reason: Why.
            broke: The device or the process was of no use afterwards: the contender under way is left out from now on.
                Otherwise it goes last the next time.
        """
        kept = self._kept(name)
        contender = self.parts.get(name, {}).get("contender") if self.state(name) == RUNNING else None
        if contender and broke:
            self._broken[contender] = {"key": self._key, "reason": f"left out, because in {name}: {reason}"}
        elif contender:
            kept["late"] = [*kept["late"], contender]
        again = bool(contender and broke)
        self._put(name, {"state": FAILED, "reason": reason, "again": again, "time": time.time(), **kept})

    def begin_entry(self, part: str, contender: str) -> None:
        """Note which contender is under way."""
        self._put(part, {"state": RUNNING, **self._kept(part), "contender": contender})

    def keep_entry(self, part: str, contender: str, entry: Any) -> None:
        """Keep what one contender of a part under way gave."""
        kept = self._kept(part)
        self._put(part, {"state": RUNNING, **kept, "entries": {**kept["entries"], contender: entry}})

    def entries(self, part: str) -> dict[str, Any]:
        """What a part has already, by contender; of one that is done they are in its result."""
        return dict(self._kept(part)["entries"])

    def late(self, part: str) -> list[str]:
        """Contenders of a part during which the time was over."""
        return list(self._kept(part)["late"])

    def broken(self, contender: str) -> str:
        """Why a contender is left out, or empty."""
        noted = self._broken.get(contender, {})
        return str(noted["reason"]) if noted.get("key") == self._key else ""

    def all_broken(self) -> list[str]:
        """Contenders that are left out because they broke the device."""
        return [contender for contender in self._broken if self.broken(contender)]

    def forgive(self, contenders: Iterable[str]) -> None:
        """Run these again, which broke the device before."""
        for contender in contenders:
            self._broken.pop(contender, None)
        self._write()

    def state(self, name: str) -> str:
        """``done``, ``failed`` or ``running`` under this key, else empty."""
        part = self.parts.get(name, {})
        return str(part.get("state", "")) if part.get("key") == self._key else ""

    def gave_up(self, name: str) -> bool:
        """It failed, and not by a contender without which it can go on."""
        return self.state(name) == FAILED and not self.parts[name].get("again", False)

    def under_way(self) -> list[str]:
        """Parts that were begun and neither finished nor failed."""
        return [name for name in self.parts if self.state(name) == RUNNING]

    def reason(self, name: str) -> str:
        """Why a part gave nothing, or empty."""
        return str(self.parts.get(name, {}).get("reason", "")) if self.state(name) == FAILED else ""

    def _kept(self, name: str) -> dict[str, Any]:
        part = self.parts.get(name, {}) if self.state(name) else {}
        return {"entries": part.get("entries", {}), "late": part.get("late", []), "left": part.get("left", [])}

    def _put(self, name: str, part: dict[str, Any]) -> None:
        self.parts[name] = {"key": self._key, **part}
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        content = {"parts": self.parts, "broken": self._broken}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self._path)  # whole or not at all

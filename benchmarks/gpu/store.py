"""Results in one JSON file, written after each contender, so that a crash loses nothing that was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

# States of a part.
DONE, FAILED, RUNNING = "done", "failed", "running"


class Store:
    """The file of results.

    Args:
        path: The file, which is read if it exists.
        key: Code, device and versions that results depend on. Parts measured under another key count as missing.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path = path
        self._key = dict(key)
        self.parts: dict[str, dict[str, Any]] = {}
        self._broken: dict[str, dict[str, Any]] = {}
        self.reload()

    def reload(self) -> None:
        """Read what another process has written.

        Raises:
            ValueError: The file holds something else.
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
        """Whether a part was measured under this key."""
        return self.state(name) == DONE

    def result(self, name: str) -> Any:
        """Result of a part, or None when it is not done."""
        return self.parts[name]["result"] if self.is_done(name) else None

    def begin(self, name: str) -> None:
        """Record that a part is running, so that the part in which a process dies is known; its entries stay."""
        self._put(name, {"state": RUNNING, **self._kept(name), "left": []})

    def finish(self, name: str, result: Any, seconds: float) -> None:
        """Record the result of a part; its entries are part of it, and are kept only if a contender was left out."""
        kept = self._kept(name)
        done = {"state": DONE, "seconds": round(seconds, 1), "result": result}
        self._put(name, {**done, **(kept if kept["left"] else {})})

    def leave(self, part: str, contender: str) -> None:
        """Record that a running part leaves a contender out."""
        kept = self._kept(part)
        self._put(part, {"state": RUNNING, **kept, "left": [*kept["left"], contender]})

    def reopen(self, without: Collection[str]) -> None:
        """Reopen finished parts that left out a contender which is no longer left out."""
        for name in [name for name in self.parts if self.is_done(name)]:
            if any(one not in without and not self.broken(one) for one in self._kept(name)["left"]):
                reopened = {"state": FAILED, "reason": "a contender was left out: run the command again", "again": True}
                self._put(name, {**reopened, **self._kept(name)})

    def fail(self, name: str, reason: str, *, broke: bool = False) -> None:
        """Record why a part has no result; its entries stay.

        Args:
            name: Name of the part.
            reason: Why it has no result.
            broke: Whether the device or the process was unusable afterwards: the running contender is then left out
                from now on. Otherwise it runs last the next time.
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
        """Record which contender is running."""
        self._put(part, {"state": RUNNING, **self._kept(part), "contender": contender})

    def keep_entry(self, part: str, contender: str, entry: Any) -> None:
        """Record the entry of one contender of a running part."""
        kept = self._kept(part)
        self._put(part, {"state": RUNNING, **kept, "entries": {**kept["entries"], contender: entry}})

    def entries(self, part: str) -> dict[str, Any]:
        """Entries of an unfinished part by contender."""
        return dict(self._kept(part)["entries"])

    def late(self, part: str) -> list[str]:
        """Contenders of a part that ran when the time was over."""
        return list(self._kept(part)["late"])

    def broken(self, contender: str) -> str:
        """Reason why a contender is left out, or empty."""
        noted = self._broken.get(contender, {})
        return str(noted["reason"]) if noted.get("key") == self._key else ""

    def all_broken(self) -> list[str]:
        """Contenders that are left out because they broke the device or the process."""
        return [contender for contender in self._broken if self.broken(contender)]

    def forgive(self, contenders: Iterable[str]) -> None:
        """Let contenders run again that broke the device or the process."""
        for contender in contenders:
            self._broken.pop(contender, None)
        self._write()

    def state(self, name: str) -> str:
        """State of a part under this key: ``done``, ``failed``, ``running`` or empty."""
        part = self.parts.get(name, {})
        return str(part.get("state", "")) if part.get("key") == self._key else ""

    def gave_up(self, name: str) -> bool:
        """Whether a part failed for another reason than a contender that is now left out."""
        return self.state(name) == FAILED and not self.parts[name].get("again", False)

    def under_way(self) -> list[str]:
        """Parts that were begun and have neither finished nor failed."""
        return [name for name in self.parts if self.state(name) == RUNNING]

    def reason(self, name: str) -> str:
        """Reason why a part failed, or empty."""
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
        temporary.replace(self._path)  # atomically


class Progress:
    """Decides which contenders of a part run, and in which order; this base class runs all and records nothing."""

    def order(self, names: Iterable[str]) -> list[str]:
        """Sort contenders into the order in which they run."""
        return list(names)

    def left_out(self, name: str) -> str:  # noqa: ARG002
        """Reason why a contender does not run, or empty."""
        return ""

    def entry(self, name: str, run: Callable[[], Any]) -> Any:  # noqa: ARG002
        """Return the entry of a contender, running it if the entry is not known."""
        return run()


class Kept(Progress):
    """Records the running contender and each entry in a store.

    Args:
        store: The store.
        part: Name of the part.
        without: Contenders that do not run.
    """

    def __init__(self, store: Store, part: str, without: Collection[str] = ()) -> None:
        self._store, self._part, self._without = store, part, without

    def order(self, names: Iterable[str]) -> list[str]:
        """Sort contenders; those during which the time was over run last."""
        late = self._store.late(self._part)
        return sorted(names, key=late.__contains__)

    def left_out(self, name: str) -> str:
        """Reason why a contender does not run: ``--without`` names it, or it broke the device before."""
        reason = "left out by --without" if name in self._without else self._store.broken(name)
        if reason:
            self._store.leave(self._part, name)
        return reason

    def entry(self, name: str, run: Callable[[], Any]) -> Any:
        """Return the entry of a contender from an earlier unfinished run, or run it."""
        entries = self._store.entries(self._part)
        if name not in entries:
            self._store.begin_entry(self._part, name)
            self._store.keep_entry(self._part, name, run())
        return self._store.entries(self._part)[name]

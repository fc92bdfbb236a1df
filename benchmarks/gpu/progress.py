"""A part's contenders one by one, each kept as soon as it is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from benchmarks.gpu.store import Store


class Progress:
    """Runs a part's contenders and keeps nothing: for a part by itself."""

    def order(self, names: Iterable[str]) -> list[str]:
        """In which the contenders are run."""
        return list(names)

    def left_out(self, name: str) -> str:  # noqa: ARG002
        """Why a contender is not to be run, or empty."""
        return ""

    def entry(self, name: str, run: Callable[[], Any]) -> Any:  # noqa: ARG002
        """What a contender gave; it is run when that is not known yet."""
        return run()


class Kept(Progress):
    """The same, each result going to the store, where the contender under way stands, too.

    Args:
        store: Where.
        part: Which is measured.
        without: Contenders that are not to be run.
    """

    def __init__(self, store: Store, part: str, without: Collection[str] = ()) -> None:
        self._store, self._part, self._without = store, part, without

    def order(self, names: Iterable[str]) -> list[str]:
        """Those that took all the time before go last."""
        late = self._store.late(self._part)
        return sorted(names, key=late.__contains__)

    def left_out(self, name: str) -> str:
        """It is named in ``--without``, or broke the device before."""
        reason = "left out by --without" if name in self._without else self._store.broken(name)
        if reason:
            self._store.leave(self._part, name)
        return reason

    def entry(self, name: str, run: Callable[[], Any]) -> Any:
        """What a contender gave, now or in a run before that did not come to the part's end."""
        entries = self._store.entries(self._part)
        if name not in entries:
            self._store.begin_entry(self._part, name)
            self._store.keep_entry(self._part, name, run())
        return self._store.entries(self._part)[name]

"""Shards whose names say what becomes of them; processes load this module fast, for it needs no torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from yolo_assigner.audit.runner import Progress, Task
from yolo_assigner.audit.structures import BadFile, Item, Settings, Shard


class Facts(NamedTuple):
    """What the shards here say."""

    process: int
    bad: tuple[BadFile, ...] = ()


def compute(shard: Shard, report: Progress | None = None) -> Facts:
    """Do what the shard's name says, and leave a file."""
    target = Path(shard.target)
    what = shard.items[0].name
    if what == "die" or (what == "die once" and not target.exists()):
        target.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        target.write_text(str(os.getpid()))
        time.sleep(600)
    if what in ("RuntimeError", "OSError"):
        raise {"RuntimeError": RuntimeError, "OSError": OSError}[what]("no room\nfor it")
    target.write_text(str(os.getpid()))
    if report is not None:
        report(1)
    return Facts(os.getpid())


def finished(shard: Shard) -> Facts | None:
    """The facts of a shard whose file has something in it."""
    with suppress(OSError, ValueError):
        return Facts(int(Path(shard.target).read_text()))
    return None


def failed(_: Shard, bad: BadFile) -> Facts:
    return Facts(0, (bad,))


TASK = Task("test", "file", compute, finished, failed)


def plan(folder: Path, names: list[str]) -> Iterator[Shard]:
    for number, name in enumerate(names):
        yield Shard(str(folder / f"{number:03d}"), (Item(name, name),), True, (), Settings(), "")

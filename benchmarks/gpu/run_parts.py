"""Parts one after the other, as far as the time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.store import Store
from benchmarks.gpu.text import first_line


def run_parts(
    parts: Mapping[str, Callable[[], Any]],
    store: Store,
    *,
    seconds: float,
    say: Callable[[str], None],
    skip: Sequence[str] = (),
    usable: Callable[[], bool] = lambda: True,
) -> bool:
    """Run what is not done yet, in order, but what failed before last.

    Args:
        parts: By name.
        store: Where each result goes at once.
        seconds: No part is begun later than this.
        say: Told of each.
        skip: Failed before in this run.
        usable: Whether the device still answers after a failure.

    Returns:
        Whether it came to the end; False when the device does not answer any more.
    """
    started = time.monotonic()
    order = sorted(parts, key=store.gave_up)
    for number, name in enumerate(order, 1):
        head = f"[{number}/{len(parts)}] {name}"
        if store.is_done(name):
            say(f"{head}: there already")
            continue
        if name in skip and store.gave_up(name):
            continue
        if time.monotonic() - started > seconds:
            say(f"{head}: the time is over; run the command again to go on")
            return True
        say(head)
        store.begin(name)
        began = time.monotonic()
        try:
            store.finish(name, parts[name](), time.monotonic() - began)
        except Exception as error:
            lost = not usable()
            store.fail(name, f"{type(error).__name__}: {first_line(error)}", broke=lost)
            say(f"{head}: failed, {first_line(error)}")
            if lost:
                return False
    return True

"""Compute shards on Ray Data: a row is a shard's description, so that tensors never enter the object store."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import ray

from yolo_assigner.audit.parquet import PARTIAL
from yolo_assigner.audit.runner import DIED_TWICE, Compute, F, Outcome, attempt
from yolo_assigner.audit.structures import Shard

Row = dict[str, Any]
MOST_TRIES = 2


def run_on_ray(compute: Compute[F], shards: Iterable[Shard], tasks: int | None) -> Generator[Outcome[F], None, None]:
    """Compute shards on the cluster of ``RAY_ADDRESS``, or on one that is started here and ends with the generator.

    A task whose process dies is tried once more, and if it dies again the shard has a fault.

    Args:
        compute: Computes a shard; pickles.
        shards: The shards; their files have to be at the same place on every machine.
        tasks: The most at a time; None: one for every CPU.

    Raises:
        Exception: As ``compute``, except for what ``attempt`` catches.
    """
    waiting = list(shards)
    if not waiting:
        return
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield from _run(compute, waiting, tasks)
    finally:
        if started_here:
            ray.shutdown()


def _run(compute: Compute[F], shards: list[Shard], tasks: int | None) -> Generator[Outcome[F], None, None]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    run = f"{socket.gethostname()}.{os.getpid()}"
    rows = [{"number": number, "shard": pickle.dumps(_absolute(shard))} for number, shard in enumerate(shards)]

    def work(row: Row) -> Row:
        return {"number": row["number"], "outcome": pickle.dumps(_settle(compute, row["shard"], run))}

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for row in dataset.map(work, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=tasks)).iter_rows():
        settled = pickle.loads(row["outcome"])  # noqa: S301  (made by the tasks above)
        if isinstance(settled, Exception):
            raise settled
        yield settled._replace(shard=shards[row["number"]])


def _settle(compute: Compute[F], description: bytes, run: str) -> Outcome[F] | Exception:
    """Compute a shard in a task; an error that ends the run travels as a value, without Ray's words around it.

    Ray Data tries a task whose process dies for ever, so the tries are counted in a file beside the target.
    """
    shard: Shard = pickle.loads(description)  # noqa: S301  (made by the process that started the run)
    target = Path(shard.target)
    tries = target.with_name(f".{target.name}.{run}{PARTIAL}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if tries.exists() and tries.stat().st_size == MOST_TRIES:
            tries.unlink()
            return Outcome(shard, None, DIED_TWICE)
        with tries.open("ab") as file:
            file.write(b".")
        settled = attempt(compute, shard)
        tries.unlink()
    except Exception as error:
        tries.unlink(missing_ok=True)
        return error
    return settled


def _absolute(shard: Shard) -> Shard:
    """The same shard for processes with another working folder."""
    items = tuple(item._replace(path=_path(item.path), label=_path(item.label)) for item in shard.items)
    settings = shard.settings._replace(weights=_path(shard.settings.weights))
    return shard._replace(target=_path(shard.target), items=items, settings=settings)


def _path(path: str) -> str:
    return str(Path(path).resolve()) if path else ""

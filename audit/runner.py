"""Compute shards, each by one call: one after another here, in a pool of processes, or on Ray.

This module and what it imports load neither torch nor pyarrow: a process of the pool limits its threads first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Generic, NamedTuple, Protocol, TypeVar

from yolo_assigner.audit.structures import BadFile, Shard

# A fork would copy the locks that other threads hold.
CONTEXT = multiprocessing.get_context("spawn")
DIED_TWICE = "its process died twice, perhaps for want of memory; make it smaller"
# Called with the number of a shard's items that were dealt with since the last call.
Progress = Callable[[int], None]


class HasBad(Protocol):
    """What a finished shard says of itself."""

    @property
    def bad(self) -> tuple[BadFile, ...]:
        """Files that could not be used."""


F = TypeVar("F", bound=HasBad)
Compute = Callable[[Shard, Progress | None], F]


class Task(NamedTuple, Generic[F]):
    """What is done with each shard.

    Attributes:
        title: In front of the progress bar.
        unit: Of an item.
        compute: Computes a shard and writes its file; pickles.
        finished: Reads what a shard's file says, if that is there and up to date.
        failed: Makes the facts of a shard that could not be computed.
    """

    title: str
    unit: str
    compute: Compute[F]
    finished: Callable[[Shard], F | None]
    failed: Callable[[Shard, BadFile], F]


class Manner(NamedTuple):
    """Where shards are computed.

    Attributes:
        workers: Processes; 1: here. On Ray the most tasks at a time; None: as many as there are CPUs.
        ray: Whether on Ray.
    """

    workers: int | None = 1
    ray: bool = False


class Outcome(NamedTuple, Generic[F]):
    """What became of a shard.

    Attributes:
        shard: The shard.
        facts: What its file says; None: it could not be computed.
        fault: Why, and the remedy.
    """

    shard: Shard
    facts: F | None
    fault: str = ""


def compute_shards(task: Task[F], shards: Iterable[Shard], items: int, manner: Manner) -> list[F]:
    """Compute all shards that are not finished, with a progress bar on standard error.

    Args:
        task: What is done with each.
        shards: The shards.
        items: Their items, together.
        manner: Where they are computed.

    Returns:
        The facts of all, in the order of the names of their files.

    Raises:
        OSError, ValueError: As ``task.compute``. Shards that were finished stay so.
    """
    from tqdm import tqdm

    # tqdm's own lock has a named semaphore, which a process that is killed would leave in the system.
    tqdm.set_lock(threading.RLock())
    found: dict[str, F] = {}
    with tqdm(total=items, desc=task.title, unit=task.unit, smoothing=0) as progress:

        def unfinished() -> Iterator[Shard]:
            for shard in shards:
                facts = task.finished(shard)
                if facts is None:
                    yield shard
                    continue
                found[shard.target] = facts
                progress.initial += len(shard.items)  # what an earlier run did says nothing about the time left
                progress.update(len(shard.items))

        bad = 0
        with closing(_outcomes(task.compute, unfinished(), manner, progress.update)) as outcomes:
            for shard, facts, fault in outcomes:
                facts = facts if facts is not None else task.failed(shard, BadFile(shard.label, fault))  # noqa: PLW2901
                found[shard.target] = facts
                bad += len(facts.bad)
                progress.set_postfix(bad=bad)
    return [found[target] for target in sorted(found)]


def attempt(compute: Compute[F], shard: Shard, report: Progress | None = None) -> Outcome[F]:
    """Compute a shard; a want of memory or a fault of a library is this shard's alone.

    Args:
        compute: Computes it.
        shard: The shard.
        report: As ``compute`` takes it.
    """
    try:
        return Outcome(shard, compute(shard, report))
    except (MemoryError, RuntimeError) as error:
        text = next(iter(str(error).splitlines()), "no text")
        return Outcome(shard, None, f"{type(error).__name__}: {text}; give it more memory, or make it smaller")


def run_pool(compute: Compute[F], shards: Iterable[Shard], workers: int) -> Generator[Outcome[F], None, None]:
    """Compute shards in a pool of processes, in any order.

    Where a process dies, each shard that was in work is tried once more, in a process of its own, so that the death of
    one spoils no other. When this process dies or the generator is closed, all others end.

    Args:
        compute: Computes a shard; pickles.
        shards: Taken when there is a process for them.
        workers: Processes.

    Raises:
        Exception: As ``compute``, except for what :func:`attempt` catches.
    """
    waiting = iter(shards)
    while suspects := (yield from _until_a_death(compute, waiting, workers)):
        print(f"\na worker died; trying {', '.join(one.label for one in suspects)} once more", file=sys.stderr)
        for shard in suspects:
            yield _alone(compute, shard)


def _outcomes(
    compute: Compute[F], shards: Iterator[Shard], manner: Manner, report: Progress
) -> Generator[Outcome[F], None, None]:
    if not manner.ray and manner.workers in (None, 1):
        for shard in shards:
            yield attempt(compute, shard, report)
        return
    if manner.ray:
        from yolo_assigner.audit.ray_data import run_on_ray

        elsewhere = run_on_ray(compute, shards, manner.workers)
    else:
        elsewhere = run_pool(compute, shards, manner.workers or 1)
    with closing(elsewhere):
        for outcome in elsewhere:
            report(len(outcome.shard.items))
            yield outcome


def _until_a_death(
    compute: Compute[F], waiting: Iterator[Shard], workers: int
) -> Generator[Outcome[F], None, list[Shard]]:
    """Compute shards until all are done, or a process dies; return those that were in work then."""
    running: dict[Future[Outcome[F]], Shard] = {}
    with _pool(workers) as pool:
        while True:
            for shard in islice(waiting, workers - len(running)):
                try:
                    running[pool.submit(attempt, compute, shard)] = shard
                except BrokenProcessPool:
                    return [*running.values(), shard]
            if not running:
                return []
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    return list(running.values())
                del running[future]
                yield outcome


def _alone(compute: Compute[F], shard: Shard) -> Outcome[F]:
    with _pool(1) as pool:
        try:
            return pool.submit(attempt, compute, shard).result()
        except BrokenProcessPool:
            return Outcome(shard, None, DIED_TWICE)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Make a pool whose processes end at once when the block is left by an exception, or when this process dies."""
    watched, lifeline = CONTEXT.Pipe(duplex=False)
    with watched, lifeline, ProcessPoolExecutor(workers, CONTEXT, _prepare, (watched, workers)) as pool:
        try:
            yield pool
        except BaseException:
            lifeline.close()
            pool.shutdown(cancel_futures=True)
            raise


def _prepare(watched: Connection, workers: int) -> None:
    """Prepare a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that has the pool gets it, too, and ends this one
    threading.Thread(target=_exit_with_owner, args=(watched,), daemon=True).start()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // workers, 1)))


def _exit_with_owner(watched: Connection) -> None:
    with suppress(EOFError, OSError):
        watched.recv()
    os._exit(1)

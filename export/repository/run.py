"""Building what a plan names: several artefacts at a time, each after what it needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from yolo_assigner.export.repository.plan import EngineTarget, Target
from yolo_assigner.export.repository.state import Repository
from yolo_assigner.export.repository.worker import Result, Worker
from yolo_assigner.export.to_tensorrt.log import BuildError

MOST_JOBS = 4
BUILT, CURRENT, FAILED, SKIPPED = "built", "up to date", "failed", "skipped"


class Outcome(NamedTuple):
    """What became of an artefact.

    Attributes:
        label: The artefact.
        state: ``BUILT``, ``CURRENT``, ``FAILED`` or ``SKIPPED``.
        seconds: How long its build took.
        reason: Why it failed or was skipped.
    """

    label: str
    state: str
    seconds: float = 0.0
    reason: str = ""

    @property
    def good(self) -> bool:
        """Whether the artefact is there as it should be."""
        return self.state in (BUILT, CURRENT)


class _Job(NamedTuple):
    target: Target
    recipe: str
    worker: Worker


def default_jobs() -> int:
    """One per core, and no more than a few: each loads torch."""
    return min(os.cpu_count() or 1, MOST_JOBS)


class Run:
    """One run over a plan.

    Args:
        targets: Each model before its engines.
        repository: Where they lie.
        jobs: Builds at a time.
        report: Told of each outcome as it comes.
    """

    def __init__(
        self, targets: Sequence[Target], repository: Repository, jobs: int, report: Callable[[Outcome], None]
    ) -> None:
        self._targets = targets
        self._repository = repository
        self._report = report
        self._waiting = list(targets)
        self._ready: list[tuple[Target, str]] = []
        self._jobs: dict[Future[Result], _Job] = {}
        self._workers = [Worker() for _ in range(jobs)]
        self._idle = list(self._workers)
        self._outcomes: dict[str, Outcome] = {}

    def build(self) -> list[Outcome]:
        """Build all that is not up to date; whatever ends it early, no process goes on.

        Returns:
            One outcome per target, in their order.
        """
        done = False
        try:
            while self._waiting or self._ready or self._jobs:
                self._admit()
                self._dispatch()
                self._await_one()
            done = True
        finally:
            for worker in self._workers:
                worker.close(at_once=not done)
            for job in self._jobs.values():
                self._repository.sweep(job.target)
        return [self._outcomes[target.label] for target in self._targets]

    def _admit(self) -> None:
        """Decide about all whose model is settled."""
        waiting, self._waiting = self._waiting, []
        for target in waiting:
            needed = target.model.label if isinstance(target, EngineTarget) else None
            if needed and needed not in self._outcomes:
                self._waiting.append(target)
            elif needed and not self._outcomes[needed].good:
                self._conclude(Outcome(target.label, SKIPPED, reason=f"{needed} was not built"))
            else:
                self._examine(target)

    def _examine(self, target: Target) -> None:
        try:
            recipe = self._repository.recipe(target)
        except (BuildError, ValueError, OSError) as error:
            self._conclude(Outcome(target.label, FAILED, reason=str(error)))
            return
        if self._repository.has(target, recipe):
            self._conclude(Outcome(target.label, CURRENT))
        else:
            self._ready.append((target, recipe))

    def _dispatch(self) -> None:
        """Give work to idle processes."""
        for item in list(self._ready):
            target, recipe = item
            gpu_taken = any(_times_kernels(job.target) for job in self._jobs.values())
            if self._idle and not (gpu_taken and _times_kernels(target)):
                self._ready.remove(item)
                self._repository.sweep(target)
                worker = self._idle.pop(0)
                future = worker.submit(target, self._repository.folder, self._repository.state)
                self._jobs[future] = _Job(target, recipe, worker)

    def _await_one(self) -> None:
        for future in wait(self._jobs, return_when=FIRST_COMPLETED).done if self._jobs else ():
            self._finish(future, self._jobs.pop(future))

    def _finish(self, future: Future[Result], job: _Job) -> None:
        self._idle.insert(0, job.worker)
        try:
            result = future.result()
        except BrokenProcessPool:
            how = job.worker.close()
            self._repository.sweep(job.target)
            reason = f"its process died ({how}), perhaps for want of memory; run again, with fewer --jobs if so"
            self._conclude(Outcome(job.target.label, FAILED, reason=reason))
            return
        if not result.failure:
            self._repository.keep(job.target, job.recipe)
        state = FAILED if result.failure else BUILT
        self._conclude(Outcome(job.target.label, state, result.seconds, result.failure))

    def _conclude(self, outcome: Outcome) -> None:
        self._outcomes[outcome.label] = outcome
        self._report(outcome)


def _times_kernels(target: Target) -> bool:
    """Whether a build measures on the GPU, which another one would disturb."""
    return isinstance(target, EngineTarget) and target.runtime == "tensorrt"

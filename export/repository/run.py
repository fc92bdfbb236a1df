"""The builds of a plan: several at a time, each after the model it needs."""

from __future__ import annotations

import os
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

from yolo_assigner.export.repository.plan import EngineTarget, Target
from yolo_assigner.export.repository.processes import Processes, leave_interrupts_to_main
from yolo_assigner.export.repository.state import Repository
from yolo_assigner.export.to_tensorrt.log import BuildError

MOST_JOBS = 4
BUILT, CURRENT, FAILED, SKIPPED = "built", "up to date", "failed", "skipped"


class Outcome(NamedTuple):
    """What became of an artefact.

    Attributes:
        label: Name of the artefact.
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

    @property
    def line(self) -> str:
        """The outcome in one line, or more where the reason has more."""
        took = f" in {self.seconds:.1f} s" if self.state == BUILT else ""
        reason = f": {textwrap.indent(self.reason, '  ').strip()}" if self.reason else ""
        return f"{self.label} {self.state}{took}{reason}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """All outcomes as a Markdown table, and the number of each state."""
    lines = ["| artefact | state | seconds | |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.1f}" if outcome.state in (BUILT, FAILED) else ""
        # A bar would end the cell.
        reason = outcome.reason.partition("\n")[0].replace("|", "\\|")
        state = outcome.state if outcome.good else outcome.state.upper()
        lines.append(f"| {outcome.label} | {state} | {seconds} | {reason} |")
    states = [outcome.state for outcome in outcomes]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return "\n".join([*lines, "", f"{len(outcomes)} artefacts: {counts}"])


def default_jobs() -> int:
    """One job per core, and no more than a few: each loads torch."""
    return min(os.cpu_count() or 1, MOST_JOBS)


class Run:
    """One run over a plan, with a thread per artefact that waits for what it needs.

    Args:
        targets: Each model before its engines.
        repository: Where the artefacts lie.
        jobs: Number of builds at a time.
        report: Called with each outcome as it comes, one at a time.
        processes: Where the builds run; new ones when None.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        repository: Repository,
        jobs: int,
        report: Callable[[Outcome], None],
        processes: Processes | None = None,
    ) -> None:
        self._targets = targets
        self._repository = repository
        self._report = report
        self._processes = processes or Processes()
        self._outcomes: dict[str, Future[Outcome]] = {}
        self._jobs = threading.Semaphore(jobs)
        self._gpu = threading.Lock()
        self._bookkeeping = threading.Lock()  # guards the repository's record and the report

    def build(self) -> list[Outcome]:
        """Build all that is not up to date; when this is interrupted, all builds end.

        Returns:
            One outcome per target, in their order.
        """
        with ThreadPoolExecutor(len(self._targets), initializer=leave_interrupts_to_main) as threads:
            try:
                for target in self._targets:
                    self._outcomes[target.label] = threads.submit(self._conclude, target)
                return [outcome.result() for outcome in self._outcomes.values()]
            finally:
                self._processes.stop()

    def _conclude(self, target: Target) -> Outcome:
        if isinstance(target, EngineTarget) and not self._outcomes[target.model.label].result().good:
            outcome = Outcome(target.label, SKIPPED, reason=f"{target.model.label} was not built")
        else:
            outcome = self._make(target)
        with self._bookkeeping:
            self._report(outcome)
        return outcome

    def _make(self, target: Target) -> Outcome:
        try:
            with self._bookkeeping:
                recipe = self._repository.recipe(target)
                if self._repository.has(target, recipe):
                    return Outcome(target.label, CURRENT)
        except (BuildError, ValueError, OSError) as error:
            return Outcome(target.label, FAILED, reason=str(error))
        with self._gpu if _times_kernels(target) else nullcontext(), self._jobs:
            try:
                result = self._processes.build(target, self._repository.folder)
            finally:
                self._repository.sweep(target)
        if result.failure:
            return Outcome(target.label, FAILED, result.seconds, result.failure)
        with self._bookkeeping:
            self._repository.keep(target, recipe)
        return Outcome(target.label, BUILT, result.seconds)


def _times_kernels(target: Target) -> bool:
    """Whether a build measures on the GPU, which another one would disturb."""
    return isinstance(target, EngineTarget) and target.runtime == "tensorrt"

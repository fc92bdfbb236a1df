"""How the requests that wait for an engine become calls of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.engine.job_queue import BatchLimits, Job
from yolo_assigner.serve.engine.merge import MERGEABLE, Request, computed_outputs, likeness, merge, split
from yolo_assigner.serve.engine.merge_trial import why_not
from yolo_assigner.serve.engine.runners.base import Runner
from yolo_assigner.serve.engine.work import most_work
from yolo_assigner.serve.tensors.datatypes import Array

logger = logging.getLogger("serve")


class Batching:
    """One request a call, or several where that changes none of their bits.

    Args:
        contract: The model's.
        runner: What computes it.
        limits: How far requests are put together.
        on_called: Told of every call of the runner for requests: images, nanoseconds.

    Attributes:
        on: Requests are put together; decided by a trial when the model is loaded.
        limits: As given.
    """

    def __init__(
        self, contract: Contract, runner: Runner, limits: BatchLimits, on_called: Callable[[int, int], None]
    ) -> None:
        self.on = False
        self.limits = limits
        self._contract = contract
        self._runner = runner
        self._on_called = on_called

    def load(self) -> None:
        """Bring the runner up, and find out whether it computes requests together as it computes them alone."""
        self._runner.load()
        if self.limits.images <= 1:
            return
        name = self._contract.name
        if self._contract.kind not in MERGEABLE:
            logger.info("model %s: its requests are not put together, images of one depend on each other", name)
            return
        reason = why_not(self._runner, self._contract, self.limits.images)
        self.on = reason is None
        if reason is not None:
            logger.warning("model %s: its requests are not put together: %s", name, reason)

    def job(self, request: Request, deadline: float | None) -> Job:
        """A request as it is queued. It may spend half of its time with waiting for others."""
        if not self.on:
            return Job(request)
        now = time.monotonic()
        wait_until = math.inf if deadline is None else now + (deadline - now) / 2
        return Job(request, likeness(request), most_work(self._contract, request.inputs), wait_until)

    def compute(self, requests: Sequence[Request]) -> list[dict[str, Array] | Exception]:
        """Compute requests of one likeness.

        Returns:
            For each its outputs, or what it failed with. When all together fail, each is tried alone.
        """
        try:
            return list(self._together(requests) if self.on else self._alone(requests))
        except Exception as error:
            if len(requests) == 1:
                return [error]
            name, count = self._contract.name, len(requests)
            logger.warning("model %s: %d requests failed together (%s), each is tried alone", name, count, error)
        return [outcome for request in requests for outcome in self.compute([request])]

    def _alone(self, requests: Sequence[Request]) -> list[dict[str, Array]]:
        (request,) = requests
        return [self._call(request.inputs, request.outputs)]

    def _together(self, requests: Sequence[Request]) -> list[dict[str, Array]]:
        computed = self._call(merge(requests), computed_outputs(requests[0].outputs))
        return split(self._contract, requests, computed)

    def _call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        began = time.monotonic_ns()
        arrays = self._runner.infer(inputs, outputs)
        self._on_called(len(inputs["gt_bboxes"]), time.monotonic_ns() - began)
        return arrays

"""How the requests that wait for an engine become calls of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from export.contract import Contract
from serve.engine.job_queue import BatchLimits, Job
from serve.engine.merge import MERGEABLE, Request, computed_outputs, likeness, merge, split
from serve.engine.merge_trial import why_not
from serve.engine.runners.base import Runner
from serve.engine.work import most_work
from serve.tensors.datatypes import Array

logger = logging.getLogger("serve")


class Batching:
    """One request a call, or several where that changes none of their bits.

    Args:
        contract: The model's.
        runner: What computes it.
        limits: How far requests are put together.

    Attributes:
        on: Requests are put together; decided by a trial when the model is loaded.
        limits: As given.
    """

    def __init__(self, contract: Contract, runner: Runner, limits: BatchLimits) -> None:
        self.on = False
        self.limits = limits
        self._contract = contract
        self._runner = runner

    def load(self) -> None:
        """Bring the runner up, and find out whether it computes requests together as it computes them alone."""
        self._runner.load()
        if self.limits.images <= 1:
            return
        name = self._contract.name
        if self._contract.kind not in MERGEABLE:
            logger.info("model %s: its requests are not put together, images of one depend on each other", name)
            return
        reason = why_not(self._runner, self._contract)
        self.on = reason is None
        if reason is not None:
            logger.warning("model %s: its requests are not put together: %s", name, reason)

    def job(self, request: Request) -> Job:
        """A request as it is queued."""
        if not self.on:
            return Job(request)
        return Job(request, likeness(request), most_work(self._contract, request.inputs))

    def compute(self, requests: Sequence[Request]) -> list[dict[str, Array] | Exception]:
        """Compute requests of one likeness.

        Returns:
            For each its outputs, or what it failed with. When all together fail, each is tried alone.
        """
        try:
            return list(self._call(requests))
        except Exception as error:
            if len(requests) == 1:
                return [error]
            logger.warning(
                "model %s: %d requests failed together, each is tried alone", self._contract.name, len(requests)
            )
        return [outcome for request in requests for outcome in self.compute([request])]

    def _call(self, requests: Sequence[Request]) -> list[dict[str, Array]]:
        if not self.on:
            (request,) = requests
            return [self._runner.infer(request.inputs, request.outputs)]
        computed = self._runner.infer(merge(requests), computed_outputs(requests[0].outputs))
        return split(self._contract, requests, computed)

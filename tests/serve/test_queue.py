"""The queue before a model: deadlines, cancelled callers, and what is still computed then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tests.serve.conftest import Live, assigner_inputs, binary_rows, loss_inputs
from tests.serve.toy_contract import CONTRACT
from yolo_assigner.serve.errors import ClientDisconnectedError, TooLateError
from yolo_assigner.serve.http.disconnect import unless_disconnected
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.service import Operation, new_call
from yolo_assigner.serve.wire.dtypes import Array


class SlowRunner:
    """Blocks in every call until the test lets it go on."""

    platform = "slow"
    description = "slow"
    sizes: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def load(self) -> None:
        """Do nothing."""

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Record the first score, which tells whose request it is, and wait."""
        self.begun.append(float(inputs["pd_scores"].flat[0]))
        self.entered.set()
        assert self.go_on.wait(10)
        return {name: inputs["pd_scores"].sum(axis=2) for name in outputs}

    def close(self) -> None:
        """Do nothing."""


def inputs(mark: float) -> dict[str, Array]:
    arrays = assigner_inputs(images=1)
    arrays["pd_scores"][:] = mark
    return arrays


class Queue:
    """A model whose engine is blocked in its first call."""

    def __init__(self) -> None:
        self.runner = SlowRunner()
        self.model = Model(CONTRACT, self.runner)

    def infer(self, mark: float, seconds: float | None = None) -> asyncio.Task[dict[str, Array]]:
        """Ask for scores of one value."""
        return asyncio.create_task(self.ask(mark, seconds))

    async def ask(self, mark: float, seconds: float | None = None) -> dict[str, Array]:
        """As :meth:`infer`, as a coroutine."""
        deadline = new_call(Operation.INFER, allowed=seconds).deadline()
        return await self.model.infer(inputs(mark), ["target_weights"], deadline)

    async def __aenter__(self) -> Queue:
        await self.model.load()
        self.first = self.infer(1.0)
        await asyncio.to_thread(self.runner.entered.wait, 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.runner.go_on.set()
        self.model.close()


def test_a_request_whose_time_is_over_is_not_computed() -> None:
    async def scenario() -> None:
        async with Queue() as queue:
            late, patient = queue.infer(2.0, seconds=0.05), queue.infer(3.0, seconds=60)
            with pytest.raises(TooLateError, match="before model 'toy' got to it"):
                await late
            assert queue.model.stats.queued == 2
            queue.runner.go_on.set()
            await patient
            assert queue.runner.begun == [1.0, 3.0]

    asyncio.run(scenario())


def test_a_request_that_began_before_its_deadline_is_answered() -> None:
    async def scenario() -> None:
        async with Queue() as queue:
            queue.runner.go_on.set()
            await queue.first
            queue.runner.go_on.clear()
            queue.runner.entered.clear()
            task = queue.infer(2.0, seconds=0.05)
            await asyncio.to_thread(queue.runner.entered.wait, 10)
            await asyncio.sleep(0.2)
            assert not task.done()
            queue.runner.go_on.set()
            assert (await task)["target_weights"].shape[0] == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_the_request_of_a_disconnected_caller_is_dequeued(seconds: float | None) -> None:
    async def scenario() -> None:
        async with Queue() as queue:
            messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            gone = asyncio.create_task(unless_disconnected(messages.get, queue.ask(2.0, seconds)))
            other = queue.infer(3.0)
            await asyncio.sleep(0.05)
            await messages.put({"type": "http.disconnect"})
            with pytest.raises(ClientDisconnectedError):
                await gone
            queue.runner.go_on.set()
            await other
            assert queue.runner.begun == [1.0, 3.0]
            assert queue.model.stats.queued == 0

    asyncio.run(scenario())


def test_the_result_comes_through_while_the_caller_listens() -> None:
    async def scenario() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            return {}

        async def work() -> int:
            await asyncio.sleep(0)
            return 7

        async def fails() -> int:
            raise ZeroDivisionError

        assert await unless_disconnected(receive, work()) == 7
        with pytest.raises(ZeroDivisionError):
            await unless_disconnected(receive, fails())

    asyncio.run(scenario())


def test_timeout_of_a_request(live: Live) -> None:
    """A microsecond is over before any model can have begun; 0 is no limit."""
    rows, blob = binary_rows(loss_inputs())
    for timeout, status in ((60_000_000, 200), (0, 200)):
        assert live.infer("loss", {"inputs": rows, "parameters": {"timeout": timeout}}, blob).status == status
    for wrong in (-1, 1.5, "1", True):
        reply = live.infer("loss", {"inputs": rows, "parameters": {"timeout": wrong}}, blob)
        assert reply.status == 400
        assert "microseconds" in reply.error


def test_results_are_their_callers(live: Live) -> None:
    """Replies are the same after all that."""
    rows, blob = binary_rows(loss_inputs(seed=5))
    first, second = (live.infer("loss", {"inputs": rows}, blob).body for _ in range(2))
    assert first == second
    assert np.frombuffer(first[:1], np.uint8)[0] == ord("{")

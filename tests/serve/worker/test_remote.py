"""Requests to models in a worker that fails, dies and hangs."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import assigner_inputs, binary_rows
from tests.serve.worker.toy import (
    CANNOT_LOAD,
    COMMAND,
    CONTRACT,
    DIE,
    DIES_LOADING,
    FAIL,
    FORGET,
    HANG,
    HOLD,
    SLOW,
    SLOW_SECONDS,
    STARTED,
)
from yolo_assigner.export.contract import file_hash
from yolo_assigner.serve.errors import (
    BadRequestError,
    BusyError,
    InferenceError,
    ModelFailedError,
    NotReadyError,
    StuckError,
    TooLateError,
)
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.local import Setup
from yolo_assigner.serve.inference.runners.choice import RunnerOptions
from yolo_assigner.serve.inference.service import Operation, new_call
from yolo_assigner.serve.process import supervisor as remote
from yolo_assigner.serve.process.child import CallFailedError
from yolo_assigner.serve.process.segments import LeaseTable
from yolo_assigner.serve.process.supervisor import RemoteService
from yolo_assigner.serve.wire.response import EncodedResponse

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has such sockets and memory")
MIB = 2**20
BOTH = ("target_weights", "target_scores")
SLOW_REQUESTS = 10  # which take 5 s together, longer than a reload


class Toy:
    """A service with toy models, and requests to it."""

    def __init__(self, folder: Path, engine_timeout: float = 0.0, names: Sequence[str] = ("toy",)) -> None:
        sizes = (16 * MIB, 64 * MIB)
        limits = (BatchLimits(), 2**30, engine_timeout)
        setup = Setup(folder, RunnerOptions(), *limits, None, *sizes, "error", "text")
        self.service = RemoteService([replace(CONTRACT, name=name) for name in names], setup, COMMAND)

    def ask(
        self,
        mark: float = 0.5,
        side: int = 64,
        images: int = 1,
        outputs: tuple[str, ...] = BOTH[:1],
        allowed: float | None = None,
        model: str = "toy",
        **parameters: Any,
    ) -> asyncio.Task[EncodedResponse]:
        """Send a request whose first score is the mark."""
        arrays = assigner_inputs(images=images, side=side)
        arrays["pd_scores"].flat[0] = mark
        rows, blob = binary_rows(arrays)
        document = {"inputs": rows, "outputs": [{"name": name} for name in outputs], "parameters": parameters}
        text = json.dumps(document).encode()
        body = self.service.memory.take(len(text) + len(blob))[: len(text) + len(blob)].data
        body[:] = text + blob
        call = new_call(Operation.INFER, model, len(text), allowed)
        return asyncio.create_task(self.service.run(call, body))


async def expected(toy: Toy, **asked: Any) -> None:
    """Check that a request gets the right answer."""
    outputs = asked.get("outputs", BOTH[:1])
    encoded = await toy.ask(**asked, binary_data_output=True)
    scores = assigner_inputs(images=asked.get("images", 1), side=asked.get("side", 64))["pd_scores"]
    scores.flat[0] = asked.get("mark", 0.5)
    results = {"target_weights": scores.sum(axis=2), "target_scores": 2 * scores}
    body = b"".join(encoded.chunks)
    assert encoded.header_length is not None
    assert body[encoded.header_length :] == b"".join(results[name].tobytes() for name in outputs)


async def begun(folder: Path) -> None:
    """Wait until an engine has begun on a slow request."""
    while not (folder / STARTED).exists():
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(folder: Path, engine_timeout: float = 0.0, names: Sequence[str] = ("toy",)) -> AsyncIterator[Toy]:
    toy = Toy(folder, engine_timeout, names)
    await toy.service.load()
    pid = toy.service.pid
    try:
        yield toy
    finally:
        toy.service.close()
        assert toy.service.pid != pid or not Path(f"/proc/{pid}/fd").exists()


def scenario(
    folder: Path,
    play: Callable[[Toy], Awaitable[None]],
    engine_timeout: float = 0.0,
    names: Sequence[str] = ("toy",),
) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), running(folder, engine_timeout, names) as toy:
            await play(toy)

    asyncio.run(run())


@pytest.mark.parametrize("side", [64, 320], ids=["in messages", "in segments"])
def test_requests_are_answered(tmp_path: Path, side: int) -> None:
    async def play(toy: Toy) -> None:
        await expected(toy, side=side)
        await asyncio.gather(*(expected(toy, side=side, images=1 + n % 3, outputs=BOTH, mark=n / 9) for n in range(9)))
        assert (toy.service.memory.held_bytes > 0) == (side == 320)
        statistics = toy.service.registry.find("toy").stats
        assert (statistics.inference_count, statistics.execution_count, toy.service.queued) == (10, 10, 0)

    scenario(tmp_path, play)


def test_memory_is_used_again(tmp_path: Path) -> None:
    """Memory of bodies and of replies is used again, also when callers hang up."""

    async def play(toy: Toy) -> None:
        pid = toy.service.pid
        for number in range(60):
            task = toy.ask(side=320, images=1 + number % 3, outputs=BOTH)
            if number % 4 == 0:
                await asyncio.sleep(0.002 * (number % 5))
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            del task
        await expected(toy, side=320, images=3)
        opened = [str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir() if one.is_symlink()]
        # Bodies of 0.5 to 1.5 MB as one side has them and replies as the other does, two descriptors each.
        assert sum(target.startswith("/memfd:") for target in opened) <= 12
        assert toy.service.memory.held_bytes <= 8 * MIB

    scenario(tmp_path, play)


def test_refusals_and_failures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def play(toy: Toy) -> None:
        with pytest.raises(BadRequestError, match="no output 'nothing'"):
            await toy.ask(outputs=("nothing",))
        with pytest.raises(InferenceError, match="the server's log says why"):
            await toy.ask(mark=FAIL)
        with pytest.raises(BadRequestError, match="not JSON"):
            await toy.service.run(new_call(Operation.INFER, "toy"), memoryview(b"what?"))
        with pytest.raises(CallFailedError):
            await toy.ask(mark=FORGET)
        await expected(toy)

    scenario(tmp_path, play)
    assert "secret detail" in capfd.readouterr().err


@pytest.mark.parametrize("side", [64, 320])
def test_only_the_request_that_was_computed_fails_when_the_worker_dies(tmp_path: Path, side: int) -> None:
    async def play(toy: Toy) -> None:
        service, first = toy.service, toy.service.pid
        slow = toy.ask(mark=SLOW, side=side)
        others = [asyncio.create_task(expected(toy, side=side, mark=n / 9)) for n in range(5)]
        await begun(tmp_path)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        with pytest.raises(InferenceError, match="ended while it computed this request"):
            await slow
        await asyncio.gather(*others, expected(toy, side=side))
        assert service.restarts == 1
        assert service.pid != first
        assert service.queued == 0

    scenario(tmp_path, play)


def test_a_request_that_kills_the_worker_is_not_sent_again(tmp_path: Path) -> None:
    async def play(toy: Toy) -> None:
        with pytest.raises(InferenceError, match="ended while it computed this request"):
            await toy.ask(mark=DIE)
        await expected(toy)
        assert toy.service.restarts == 1

    scenario(tmp_path, play)


def test_an_engine_that_hangs_is_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A hanging engine ends the worker also when its caller hung up; a slow one does not."""

    async def play(toy: Toy) -> None:
        hanging = toy.ask(mark=HANG)
        await begun(tmp_path)
        hanging.cancel()
        behind = asyncio.create_task(expected(toy))
        await behind
        assert toy.service.restarts == 1
        await expected(toy, mark=SLOW)
        assert toy.service.restarts == 1

    scenario(tmp_path, play, engine_timeout=3 * SLOW_SECONDS)
    assert "more than --engine-timeout" in capfd.readouterr().err


def test_deadlines_are_kept_without_the_worker(tmp_path: Path) -> None:
    """Deadlines are the request's or the server's; a request that an engine has started on is waited for."""

    async def play(toy: Toy) -> None:
        slow = toy.ask(mark=SLOW, allowed=0.8 * SLOW_SECONDS)
        await begun(tmp_path)
        began = time.monotonic()
        late = [toy.ask(allowed=0.05), toy.ask(timeout=50_000), toy.ask(timeout=50_000, side=320)]
        patient = asyncio.create_task(expected(toy, allowed=0.05, timeout=30_000_000))
        for one in late:
            with pytest.raises(TooLateError):
                await one
        assert time.monotonic() - began >= 0.05
        assert not slow.done()
        assert len((await slow).chunks) == 1
        await patient

    scenario(tmp_path, play)


@pytest.mark.parametrize(
    ("file", "message"),
    [(CANNOT_LOAD, "^the toy is broken$"), (DIES_LOADING, r"models were loaded \(signal 11\)")],
)
def test_models_that_cannot_be_loaded(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).touch()

    async def run() -> None:
        toy = Toy(tmp_path)
        with pytest.raises(ValueError, match=message):
            await toy.service.load()
        with pytest.raises(NotReadyError, match="being loaded"):
            await toy.ask()
        toy.service.close()

    asyncio.run(run())


ABC = ("a", "b", "c")
REASONS = {
    CANNOT_LOAD: "the toy is broken",
    DIES_LOADING: remote.CRASHED.format("signal 11"),
}


async def serves_all_but_b(toy: Toy, reason: str) -> None:
    await expected(toy, model="a")
    await expected(toy, model="c")
    assert toy.service.registry.failures == {"b": reason}
    assert toy.service.registry.ready
    with pytest.raises(ModelFailedError, match=re.escape(f"model 'b' cannot be loaded: {reason}")):
        await toy.ask(model="b")


@pytest.mark.parametrize("file", REASONS)
def test_a_model_that_cannot_be_loaded_leaves_the_others(
    tmp_path: Path, file: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is not tried again when the worker is started again for another reason."""
    (tmp_path / file).write_text("b")

    async def play(toy: Toy) -> None:
        await serves_all_but_b(toy, REASONS[file])
        starts = toy.service.restarts
        assert starts == (file == DIES_LOADING)
        (tmp_path / file).unlink()
        with pytest.raises(InferenceError):
            await toy.ask(mark=DIE, model="c")
        await serves_all_but_b(toy, REASONS[file])
        assert toy.service.restarts == starts + 1

    scenario(tmp_path, play, names=ABC)
    log = capfd.readouterr().err + caplog.text
    assert log.count(f"model b cannot be loaded and is left out: {REASONS[file]}; mend") == 1


@pytest.mark.parametrize("file", REASONS)
def test_a_model_that_cannot_be_loaded_again_leaves_the_others(tmp_path: Path, file: str) -> None:
    async def play(toy: Toy) -> None:
        await expected(toy, model="b")
        (tmp_path / file).write_text("b")
        with pytest.raises(InferenceError):
            await toy.ask(mark=DIE, model="b")
        await serves_all_but_b(toy, REASONS[file])

    scenario(tmp_path, play, names=ABC)


def write_models(folder: Path, names: Sequence[str] = ABC) -> None:
    """Write contracts and files of toys: reloading reads them."""
    for name in names:
        (folder / f"{name}.onnx").write_bytes(b"a toy")
        contract = replace(CONTRACT, name=name, file=f"{name}.onnx", sha256=file_hash(folder / f"{name}.onnx"))
        (folder / f"{name}.json").write_text(json.dumps(asdict(contract)))


@pytest.mark.parametrize("file", REASONS)
def test_a_model_that_cannot_be_reloaded_stays_as_it_was(tmp_path: Path, file: str) -> None:
    """The worker in use goes on also when loading the model kills the process that loads it."""
    write_models(tmp_path)
    reason = {CANNOT_LOAD: "the toy is broken", DIES_LOADING: "process ended while models were loaded (signal 11)"}[
        file
    ]

    async def play(toy: Toy) -> None:
        pid = toy.service.pid
        (tmp_path / file).write_text("b")
        with pytest.raises(BadRequestError, match=re.escape(reason)) as caught:
            await toy.service.reload("b")
        assert "the one that was loaded before stays in use" in str(caught.value)
        for name in ABC:
            await expected(toy, model=name)
        (tmp_path / file).unlink()
        await toy.service.reload("b")
        await expected(toy, model="b")
        assert (toy.service.pid, toy.service.restarts, toy.service.registry.failures) == (pid, 0, {})

    scenario(tmp_path, play, names=ABC)


@pytest.mark.parametrize("file", REASONS)
def test_a_model_that_failed_is_reloaded(tmp_path: Path, file: str) -> None:
    write_models(tmp_path)
    (tmp_path / file).write_text("b")

    async def play(toy: Toy) -> None:
        await serves_all_but_b(toy, REASONS[file])
        with pytest.raises(BadRequestError, match="it stays out of use"):
            await toy.service.reload("b")
        (tmp_path / file).unlink()
        await toy.service.reload("b")
        for name in ABC:
            await expected(toy, model=name)
        with pytest.raises(InferenceError):
            await toy.ask(mark=DIE, model="c")
        await expected(toy, model="b")  # the next process has it, too

    scenario(tmp_path, play, names=ABC)


def test_requests_under_way_are_answered_by_the_model_they_began_with(tmp_path: Path) -> None:
    write_models(tmp_path)

    async def play(toy: Toy) -> None:
        under_way = [toy.ask(mark=SLOW, model="b") for _ in range(SLOW_REQUESTS)]
        await begun(tmp_path)
        await toy.service.reload("b")
        assert not under_way[-1].done()
        await expected(toy, model="b")
        await asyncio.gather(*under_way)
        assert toy.service.registry.models["b"].stats.inference_count == SLOW_REQUESTS + 1  # they go on
        assert toy.service.queued == 0

    scenario(tmp_path, play, names=ABC)


def test_reloading_is_refused_before_models_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RESTART_SECONDS", 0.1)

    async def run() -> None:
        toy = Toy(tmp_path, names=ABC)
        with pytest.raises(NotReadyError, match="first time"):
            await toy.service.reload("b")

    asyncio.run(run())


def test_a_server_without_engines_for_long_is_not_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "HOPEFUL_SECONDS", 1.0)
    monkeypatch.setattr(remote, "LEAST_PAUSE", 0.1)

    async def play(toy: Toy) -> None:
        toy.service.check_alive()
        (tmp_path / CANNOT_LOAD).touch()
        with pytest.raises(InferenceError):
            await toy.ask(mark=DIE)
        toy.service.check_alive()
        await asyncio.sleep(1.2)
        with pytest.raises(StuckError, match="could not be started for 1 s; restart the server"):
            toy.service.check_alive()
        (tmp_path / CANNOT_LOAD).unlink()
        await expected(toy)
        toy.service.check_alive()

    scenario(tmp_path, play)


def test_models_that_all_end_the_process_end_it_once_each(tmp_path: Path) -> None:
    (tmp_path / DIES_LOADING).touch()

    async def run() -> None:
        toy = Toy(tmp_path, names=ABC)
        with pytest.raises(ValueError, match=r"models were loaded \(signal 11\)"):
            await toy.service.load()
        assert toy.service.restarts == len(ABC) - 1
        toy.service.close()

    asyncio.run(run())


def test_loading_is_tried_again_until_it_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RESTART_SECONDS", 0.3)
    monkeypatch.setattr(remote, "LEAST_PAUSE", 0.1)

    async def play(toy: Toy) -> None:
        (tmp_path / CANNOT_LOAD).touch()
        with pytest.raises(InferenceError):
            await toy.ask(mark=DIE)
        with pytest.raises(NotReadyError, match="try again in a moment"):
            await toy.ask()
        while toy.service.restarts < 2:
            await asyncio.sleep(0.01)
        assert not toy.service.registry.ready
        (tmp_path / CANNOT_LOAD).unlink()
        monkeypatch.setattr(remote, "RESTART_SECONDS", 30.0)
        await expected(toy)

    scenario(tmp_path, play)


def test_hanging_up_dequeues_the_request(tmp_path: Path) -> None:
    """Neither the request nor its memory stays, though it has no deadline."""

    async def play(toy: Toy) -> None:
        slow = toy.ask(mark=SLOW)
        await begun(tmp_path)
        gone = [toy.ask(mark=SLOW, side=320) for _ in range(20)]
        await asyncio.sleep(0.1)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        dropped = len(gone)
        del gone, task
        await slow
        began = time.monotonic()
        await expected(toy, side=320)
        assert time.monotonic() - began < dropped * SLOW_SECONDS / 2
        assert toy.service.queued == 0
        before = toy.service.memory.held_bytes
        for _ in range(30):
            await expected(toy, side=320)
        assert toy.service.memory.held_bytes == before

    scenario(tmp_path, play)


def test_statistics_count_failures_and_hang_ups(tmp_path: Path) -> None:
    """A request whose caller hung up is counted at once, without another answer to carry it."""

    async def play(toy: Toy) -> None:
        await expected(toy, images=2)
        with pytest.raises(InferenceError):
            await toy.ask(mark=FAIL)
        slow = toy.ask(mark=SLOW)
        await begun(tmp_path)
        gone = toy.ask()
        await asyncio.sleep(0.1)
        assert toy.service.queued == 2
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        statistics = toy.service.registry.find("toy").stats
        while statistics.phases["fail"].count < 2:
            await asyncio.sleep(0.01)
        assert not slow.done()
        await slow
        assert (statistics.inference_count, statistics.execution_count) == (2, 2)
        assert {images: timing.count for images, timing in statistics.batches.items()} == {1: 1, 2: 1}
        assert statistics.phases["compute_input"].count == statistics.phases["queue"].count == 2

    scenario(tmp_path, play)


def test_memory_of_refused_bodies_is_returned_at_once(tmp_path: Path) -> None:
    async def play(toy: Toy) -> None:
        for _ in range(20):
            with pytest.raises(BadRequestError):
                await toy.ask(side=320, outputs=("nothing",))
            with pytest.raises(InferenceError):
                await toy.ask(side=320, mark=FAIL)
        assert toy.service.memory.held_bytes <= 6 * MIB

    gc.disable()  # which would find them later
    try:
        scenario(tmp_path, play)
    finally:
        gc.enable()


def test_a_deadline_holds_while_the_process_is_started_again(tmp_path: Path) -> None:
    async def play(toy: Toy) -> None:
        (tmp_path / CANNOT_LOAD).touch()
        with pytest.raises(InferenceError):
            await toy.ask(mark=DIE)
        began = time.monotonic()
        with pytest.raises(TooLateError):
            await toy.ask(allowed=0.2)
        assert 0.2 <= time.monotonic() - began < 30.0  # it cannot be started at all

    scenario(tmp_path, play)


def test_a_request_may_wait_longer_than_the_server_allows_by_default(tmp_path: Path) -> None:
    """Its timeout counts also in JSON that is too large to be read before the worker reads it."""

    async def play(toy: Toy) -> None:
        slow = toy.ask(mark=SLOW)
        await begun(tmp_path)
        await expected(toy, allowed=0.05, timeout=30_000_000, padding="x" * 70_000)
        await slow

    scenario(tmp_path, play)


def test_starting_a_worker_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LEAST_PAUSE", 0.05)

    async def play(toy: Toy) -> None:
        start, tries = subprocess.Popen, []

        def popen(*words: Any, **named: Any) -> Any:
            tries.append(1)
            if len(tries) < 4:
                raise BlockingIOError("Resource temporarily unavailable")
            return start(*words, **named)

        monkeypatch.setattr(subprocess, "Popen", popen)
        with pytest.raises(InferenceError):
            await toy.ask(mark=DIE)
        await expected(toy)
        assert len(tries) == 4

    scenario(tmp_path, play)


def test_a_message_that_cannot_be_handled_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its callers must not wait for ever, for example when a segment of a reply cannot be mapped."""

    async def play(toy: Toy) -> None:
        def fail(*_: object) -> None:
            raise OSError("too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(LeaseTable, "map", fail)
            with pytest.raises(InferenceError, match="process ended"):
                await toy.ask(side=320, outputs=BOTH)
        await expected(toy, side=320, outputs=BOTH)

    scenario(tmp_path, play)


def test_an_engine_that_holds_the_interpreter_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LEAST_SILENCE", 0.2)

    async def play(toy: Toy) -> None:
        with pytest.raises(InferenceError, match="process ended"):
            await toy.ask(mark=HOLD)
        await expected(toy)

    scenario(tmp_path, play, engine_timeout=1.0)


def test_a_closed_service_refuses_requests(tmp_path: Path) -> None:
    async def run() -> None:
        toy = Toy(tmp_path)
        await toy.service.load()
        waiting = toy.ask(mark=SLOW)
        await begun(tmp_path)
        toy.service.close()
        with pytest.raises(InferenceError):
            await waiting
        with pytest.raises(BusyError, match="about to stop"):
            await toy.ask()

    asyncio.run(run())

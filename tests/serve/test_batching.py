"""Dynamic batching: results are equal to the bit to those of requests computed alone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.exports import exported
from tests.serve.conftest import Live, assigner_inputs, binary_rows, graph_inputs, loss_inputs, start, stop
from tests.serve.toy_contract import CONTRACT
from yolo_assigner.serve.errors import InferenceError
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.loading import open_artifacts
from yolo_assigner.serve.inference.merging import Request, batch_key, merge
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.runners.base import UnfitRequestError
from yolo_assigner.serve.inference.runners.choice import RunnerOptions
from yolo_assigner.serve.wire.dtypes import Array

TOGETHER = BatchLimits(images=24, seconds=0.05)
# Images, slots, side in pixels: alike ones, some without ground truth, sides that put images anywhere in memory.
SIZES = [(1, 3, 96), (2, 2, 96), (5, 3, 96), (1, 0, 96), (2, 0, 96), (1, 1, 96), (3, 9, 96), (1, 12, 96), (2, 3, 64)]
OUTPUTS = {
    "loss": [("loss",), ("loss", "loss_items", "target_gt_idx"), ("image_sums", "target_scores", "target_labels")],
    "assigner": [("target_bboxes", "fg_mask"), ("target_scores", "target_weights", "target_labels")],
}


def requests_of(kind: str) -> list[Request]:
    """Requests of every size and set of outputs, several of each, shuffled."""
    requests = []
    for seed, (images, slots, side) in enumerate(SIZES * 3):
        if kind == "loss":
            arrays = loss_inputs(images, slots, side=side, seed=seed)
        else:
            arrays = graph_inputs(images, slots, side=side, seed=seed, own_points=seed % 5 == 1)
            if seed % 4:  # workers share one detector
                arrays["anc_points"] = graph_inputs(images, side=side, own_points=seed % 3 == 1)["anc_points"]
        if slots:
            arrays["mask_gt"][0, -1] = False
        requests += [Request(arrays, outputs) for outputs in OUTPUTS[kind]]
    return [requests[place] for place in np.random.default_rng(0).permutation(len(requests))]


async def answers(model: Model, requests: Sequence[Request]) -> list[dict[str, Array]]:
    """The outputs of all requests, sent at the same time."""
    await model.load()
    try:
        return list(await asyncio.gather(*(model.infer(request.inputs, request.outputs) for request in requests)))
    finally:
        model.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["loss", "assigner"])
@pytest.mark.parametrize("formulation", ["sparse", "dense"])
def test_merged_requests_equal_separate_ones_to_the_bit(
    kind: str, formulation: str, threads: int, artifacts_dir: Path, dense_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, options = (
        artifacts_dir if formulation == "sparse" else dense_dir,
        RunnerOptions("onnxruntime", None, threads),
    )
    requests = requests_of(kind)
    alone = asyncio.run(answers(open_artifacts(folder, options).find(kind), requests))
    model = open_artifacts(folder, options, TOGETHER).find(kind)
    together = asyncio.run(answers(model, requests))
    for one, other in zip(alone, together, strict=True):
        assert list(one) == list(other)
        for name, array in one.items():
            assert (array.dtype, array.shape, array.tobytes()) == (
                other[name].dtype,
                other[name].shape,
                other[name].tobytes(),
            ), name
    assert not caplog.messages, "none failed together and was tried alone"
    counts = model.stats.as_json(kind, "1")
    assert counts["inference_count"] == len(requests)
    assert counts["execution_count"] < len(requests) * 2 / 3
    assert sum(row["compute_infer"]["count"] for row in counts["batch_stats"]) == counts["execution_count"]
    assert max(row["batch_size"] for row in counts["batch_stats"]) <= TOGETHER.images


def test_gradients_are_never_merged(artifacts_dir: Path) -> None:
    """Gradients of an image depend on all images of its request."""
    model = open_artifacts(artifacts_dir, RunnerOptions(), TOGETHER).find("loss_grad")
    requests = [Request(loss_inputs(seed=seed), ("loss",)) for seed in range(3)]
    asyncio.run(answers(model, requests))
    assert not model.dynamic_batching
    assert model.stats.execution_count == len(requests)


class Rows:
    """Weights of anchors: sums of their scores. Counts calls, can be slow, and fails on scores of 2."""

    platform = description = "rows"
    sizes: Mapping[str, int] = {}

    def __init__(self, seconds: float = 0.0, noise: bool = False, most: int = 1000) -> None:
        self.calls: list[int] = []
        self._seconds, self._noise, self._most = seconds, noise, most

    def load(self) -> None:
        """Do nothing."""

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """The sums, off by the place of the image where there is noise."""
        scores = inputs["pd_scores"]
        if len(scores) > self._most:
            raise UnfitRequestError(f"{len(scores)} images are more than {self._most}")
        self.calls.append(len(scores))
        time.sleep(self._seconds)
        if (scores == 2.0).any():
            raise ArithmeticError("a score of 2")
        offset = np.arange(len(scores), dtype=np.float32)[:, None] if self._noise else np.float32(0)
        return {name: scores.sum(axis=2) + offset for name in outputs}

    def close(self) -> None:
        """Do nothing."""


def marked(score: float, images: int = 1) -> dict[str, Array]:
    arrays = assigner_inputs(images=images)
    arrays["pd_scores"][:] = score
    return arrays


async def ask(model: Model, score: float, images: int = 1, seconds: float | None = None) -> float:
    """Ask for weights; the first one tells whose reply it is."""
    deadline = None if seconds is None else time.monotonic() + seconds
    arrays = await model.infer(marked(score, images), ["target_weights"], deadline)
    assert arrays["target_weights"].shape[0] == images
    return float(arrays["target_weights"][0, 0])


async def loaded(runner: Rows, limits: BatchLimits) -> Model:
    model = Model(CONTRACT, runner, limits)
    await model.load()
    runner.calls.clear()
    return model


def test_one_bad_request_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        model = await loaded(Rows(), BatchLimits(images=8, seconds=0.2))
        caplog.set_level(logging.CRITICAL, "serve")
        *good, bad = await asyncio.gather(ask(model, 0.25), ask(model, 0.5), ask(model, 2.0), return_exceptions=True)
        assert good == [1.25, 2.5]
        assert isinstance(bad, InferenceError)
        model.close()

    asyncio.run(scenario())


def test_an_engine_that_takes_fewer_images_computes_them_alone() -> None:
    async def scenario() -> None:
        runner = Rows(most=9)
        model = await loaded(runner, BatchLimits(images=100, seconds=0.2))
        assert list(await asyncio.gather(ask(model, 0.25, 6), ask(model, 0.5, 6))) == [1.25, 2.5]
        assert runner.calls == [6, 6]
        model.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("runner", "reason"), [(Rows(noise=True), "target_weights"), (Rows(most=2), "more than 2")])
def test_the_batch_invariance_check_finds_differences(
    runner: Rows, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = asyncio.run(loaded(runner, BatchLimits(images=8)))
    assert not model.dynamic_batching
    assert reason in caplog.text
    model.close()


def test_sizes_and_waits_are_bounded() -> None:
    async def scenario() -> None:
        runner = Rows()
        model = await loaded(runner, BatchLimits(images=4, seconds=600))  # full calls do not wait
        await asyncio.gather(*(ask(model, 0.1) for _ in range(8)))
        assert runner.calls == [4, 4]
        model.close()
        runner = Rows()
        model = await loaded(runner, BatchLimits(images=4, seconds=0.3))
        begun = time.monotonic()
        await asyncio.gather(ask(model, 0.1, 3), ask(model, 0.1, 3), ask(model, 0.1, 9))
        assert runner.calls == [3, 3, 9]
        assert await ask(model, 0.2) == 1.0
        assert 0.3 < time.monotonic() - begun < 60
        model.close()

    asyncio.run(scenario())


def test_no_request_waits_while_one_of_another_batch_key_is_queued() -> None:
    async def scenario() -> None:
        runner = Rows()
        model = await loaded(runner, BatchLimits(images=100, seconds=600))
        other = assigner_inputs(classes=2)
        asked = [asyncio.create_task(ask(model, 0.1)), asyncio.create_task(model.infer(other, ["target_weights"]))]
        await asked[0]
        model.close()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(scenario())


def test_waiting_for_others_ends_before_the_deadline() -> None:
    async def scenario() -> None:
        model = await loaded(Rows(), BatchLimits(images=100, seconds=30))
        begun = time.monotonic()
        assert await ask(model, 0.2, seconds=2) == 1.0
        assert time.monotonic() - begun < 2
        assert list(await asyncio.gather(ask(model, 0.5), ask(model, 0.2, seconds=1))) == [2.5, 1.0]
        assert time.monotonic() - begun < 4
        model.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_a_cancelled_request_is_no_longer_waited_for(seconds: float | None) -> None:
    async def scenario() -> None:
        runner = Rows()
        model = await loaded(runner, BatchLimits(images=100, seconds=0.4))
        patient, gone = asyncio.create_task(ask(model, 0.5)), asyncio.create_task(ask(model, 0.1, seconds=seconds))
        await asyncio.sleep(0.1)
        gone.cancel()
        assert await patient == 2.5
        assert runner.calls == [1]
        alone = asyncio.create_task(ask(model, 0.1, seconds=seconds))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        assert await ask(model, 0.5, seconds=1) == 2.5
        assert time.monotonic() - begun < 2
        model.close()

    asyncio.run(scenario())


def test_an_engine_whose_thread_ends_is_an_error() -> None:
    """No caller waits for ever."""

    class Exits(Rows):
        def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
            if (inputs["pd_scores"] == 2.0).any():
                raise SystemExit
            return super().infer(inputs, outputs)

    async def scenario() -> None:
        model = await loaded(Exits(), BatchLimits())
        with pytest.raises(InferenceError):
            await asyncio.wait_for(ask(model, 2.0), 5)
        assert await ask(model, 0.5) == 2.5
        model.close()

    asyncio.run(scenario())


def test_an_engine_for_large_batches_alone_is_served_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    class FourAtLeast(Rows):
        def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
            if len(inputs["pd_scores"]) < 4:
                raise UnfitRequestError("axis B is less than 4")
            return super().infer(inputs, outputs)

    async def scenario() -> None:
        model = await loaded(FourAtLeast(), BatchLimits(images=16))
        assert not model.dynamic_batching
        assert "less than 4" in caplog.text
        assert await ask(model, 0.5, images=4) == 2.5
        model.close()

    asyncio.run(scenario())


def test_calls_are_counted_as_they_are_made() -> None:
    async def scenario() -> None:
        model = await loaded(Rows(), BatchLimits(images=8, seconds=0.1))
        await asyncio.gather(ask(model, 0.25), ask(model, 0.5), ask(model, 2.0), return_exceptions=True)
        await asyncio.gather(ask(model, 0.25), ask(model, 0.5))
        await asyncio.sleep(0)
        # Three together failed; two of them were answered alone; then there was one call for two.
        assert model.stats.execution_count == 3
        assert model.stats.inference_count == 4
        assert sorted(model.stats.batches) == [1, 2]
        model.close()

    asyncio.run(scenario())


def test_memory_of_a_call_is_bounded() -> None:
    async def scenario() -> None:
        runner = Rows()
        model = await loaded(runner, BatchLimits(images=100, seconds=0.1, memory_bytes=1))
        await asyncio.gather(*(ask(model, 0.1) for _ in range(3)))
        assert runner.calls == [1, 1, 1]
        model.close()

    asyncio.run(scenario())


def test_slots_are_padded_with_invalid_ones() -> None:
    requests = [Request(loss_inputs(images, slots), ()) for images, slots in ((1, 2), (2, 3))]
    assert batch_key(requests[0]) == batch_key(requests[1])
    merged = merge(requests)
    assert merged["gt_bboxes"].shape == (3, 3, 4)
    assert merged["mask_gt"][:, :, 0].tolist() == [[True, True, False], [True] * 3, [True] * 3]
    np.testing.assert_array_equal(merged["feat_1"][1:], requests[1].inputs["feat_1"])


def test_a_server_answers_many_at_once_as_it_answers_one(live: Live) -> None:
    rows, blob = binary_rows(loss_inputs(images=1))
    alone = live.infer("loss", {"inputs": rows}, blob).body
    batching = start("--artifacts", exported("loss", "sparse"), "--batch-images", "16", "--batch-wait", "0.2")
    try:

        async def together() -> list[bytes]:
            calls = (asyncio.to_thread(batching.infer, "loss", {"inputs": rows}, blob) for _ in range(6))
            return [reply.body for reply in await asyncio.gather(*calls)]

        assert set(asyncio.run(together())) == {alone}
        (stats,) = batching.send("GET", "/v2/models/loss/stats").json["model_stats"]
        assert stats["inference_count"] == 6
        assert stats["execution_count"] < 6
        config = batching.send("GET", "/v2/models/loss/config").json
        assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 200_000}
    finally:
        assert stop(batching) == 0

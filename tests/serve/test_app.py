"""What cannot be seen on a healthy server: loading, failing, and many callers at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serve.conftest import assigner_inputs, json_rows
from tests.serve.toy_contract import CONTRACT
from yolo_assigner.serve.app import AppParts, create_app
from yolo_assigner.serve.inference.loading import LoadedModels
from yolo_assigner.serve.inference.local import LocalService
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.runners.base import UnfitRequestError
from yolo_assigner.serve.shared_memory.regions import Regions
from yolo_assigner.serve.wire.dtypes import Array


class SumRunner:
    """Sums the scores. Loads when it is allowed to, and fails on a first score above 1."""

    platform = "sums"
    description = "sums in numpy"
    sizes: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.may_load = threading.Event()
        self.threads: set[str] = set()
        self.closed = False

    def load(self) -> None:
        """Wait."""
        if not self.may_load.wait(10):
            raise TimeoutError("nobody let it load")

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Sum over classes."""
        self.threads.add(threading.current_thread().name)
        if inputs["pd_scores"].flat[0] > 1:
            raise RuntimeError("secret detail")
        if inputs["pd_scores"].shape[0] > 5:
            raise UnfitRequestError("axis B is too large")
        return {name: inputs["pd_scores"].sum(axis=2) for name in outputs}

    def close(self) -> None:
        """Remember it."""
        self.closed = True


class Started:
    """The application, started, with a client that sees it as from outside."""

    def __init__(self, runner: Any, regions: Regions | None = None, **options: Any) -> None:
        service = LocalService(LoadedModels([Model(CONTRACT, runner)]), regions)
        self.app = create_app(service, parts=AppParts(**options))
        self._life = self.app.router.lifespan_context(self.app)

    async def __aenter__(self) -> httpx.AsyncClient:
        await self._life.__aenter__()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://test")
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        await self._life.__aexit__(None, None, None)


async def until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(10):
        while (await client.get("/v2/health/ready")).status_code != 200:
            await asyncio.sleep(0.01)


def body(images: int = 1, seed: int = 0) -> dict[str, Any]:
    return {"inputs": json_rows(assigner_inputs(images=images, seed=seed))}


def test_nothing_is_ready_while_loading() -> None:
    async def scenario() -> None:
        runner = SumRunner()
        async with Started(runner) as client:
            assert (await client.get("/v2/health/live")).json() == {"live": True}
            assert (await client.get("/v2/models/toy")).status_code == 200
            waiting = [
                await client.get("/v2/health/ready"),
                await client.get("/v2/models/toy/ready"),
                await client.post("/v2/models/toy/infer", content=b"not even looked at"),
                await client.post("/v1/assign", json={}),
            ]
            for reply in waiting:
                assert reply.status_code == 503
                assert list(reply.json()) == ["error"]
                assert reply.headers["Retry-After"] == "1"
            runner.may_load.set()
            await until_ready(client)
            assert (await client.post("/v2/models/toy/infer", json=body())).status_code == 200

    asyncio.run(scenario())


def test_a_model_that_cannot_load_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SumRunner):
        def load(self) -> None:
            raise ValueError("not a graph")

    async def scenario() -> None:
        told: list[BaseException] = []
        async with Started(Broken(), on_load_failure=told.append) as client:
            async with asyncio.timeout(10):
                while not told:
                    await asyncio.sleep(0.01)
            assert str(told[0]) == "not a graph"
            assert (await client.get("/v2/health/ready")).status_code == 503

    asyncio.run(scenario())
    assert "a model cannot be loaded" in caplog.text


def test_a_failing_engine_gives_no_traceback_and_serves_the_next(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        runner = SumRunner()
        runner.may_load.set()
        async with Started(runner) as client:
            await until_ready(client)
            bad = body()
            bad["inputs"][0]["data"][0] = 2
            reply = await client.post("/v2/models/toy/infer", json=bad)
            assert reply.status_code == 500
            assert list(reply.json()) == ["error"]
            assert "secret" not in reply.text
            assert (await client.post("/v2/models/toy/infer", json=body())).status_code == 200

    asyncio.run(scenario())
    assert "secret detail" in caplog.text


def test_what_an_engine_was_not_built_for_is_the_callers_to_change() -> None:
    """No failure: the reason reaches the caller word by word, and the next request is served."""

    async def scenario() -> None:
        runner = SumRunner()
        runner.may_load.set()
        async with Started(runner) as client:
            await until_ready(client)
            reply = await client.post("/v2/models/toy/infer", json=body(images=6))
            assert (reply.status_code, reply.json()) == (400, {"error": "axis B is too large"})
            assert (await client.post("/v2/models/toy/infer", json=body())).status_code == 200

    asyncio.run(scenario())


def test_metadata_names_what_runs_and_the_end_closes_it() -> None:
    async def scenario() -> None:
        runner = SumRunner()
        runner.may_load.set()
        async with Started(runner) as client:
            assert (await client.get("/v2/models/toy")).json()["platform"] == "sums"
            assert not runner.closed
        assert runner.closed

    asyncio.run(scenario())


def test_a_fault_of_our_own_has_the_same_form() -> None:
    async def scenario() -> None:
        started = Started(SumRunner())

        @started.app.get("/fault")
        async def fault() -> None:
            raise ZeroDivisionError("secret detail")

        async with started as client:
            reply = await client.get("/fault")
            assert (reply.status_code, list(reply.json())) == (500, ["error"])
            assert "secret" not in reply.text

    asyncio.run(scenario())


def test_callers_at_once_get_their_own_results_from_one_thread() -> None:
    async def scenario() -> None:
        runner = SumRunner()
        runner.may_load.set()
        async with Started(runner) as client:
            await until_ready(client)
            sizes = [1 + seed % 5 for seed in range(40)]
            calls = [client.post("/v2/models/toy/infer", json=body(size, seed)) for seed, size in enumerate(sizes)]
            for seed, (size, reply) in enumerate(zip(sizes, await asyncio.gather(*calls), strict=True)):
                output = reply.json()["outputs"][0]
                expected = assigner_inputs(images=size, seed=seed)["pd_scores"].sum(axis=2)
                assert output["shape"] == list(expected.shape)
                np.testing.assert_array_equal(np.array(output["data"], np.float32), expected.ravel())
        assert runner.threads == {"engine-toy_0"}

    asyncio.run(scenario())


def test_kinds_that_are_not_served() -> None:
    async def scenario() -> None:
        runner = SumRunner()
        runner.may_load.set()
        async with Started(runner) as client:
            await until_ready(client)
            reply = await client.post("/v1/loss", json={"batch": {"batch_idx": [], "cls": [], "bboxes": []}})
            assert reply.status_code == 404
            assert "no model of kind loss" in reply.json()["error"]
            page = (await client.get("/openapi.json")).json()
            assert "examples" not in page["paths"]["/v1/loss"]["post"]["requestBody"]["content"]["application/json"]

    asyncio.run(scenario())

"""HEAD on the health paths, as GET but for the body, and what guards, metrics and the OpenAPI document make of it."""

from __future__ import annotations

import asyncio

from tests.serve.test_app import Started, SumRunner, until_ready
from yolo_assigner.serve.http.auth import Keys, KeySource
from yolo_assigner.serve.http.metrics import Metrics

KEY = "a-key-of-thirty-two-characters-0"


def test_head_says_what_get_says() -> None:
    async def check() -> None:
        runner, metrics = SumRunner(), Metrics()
        async with Started(runner, keys=Keys(KeySource(others=(KEY,))), metrics=metrics) as client:

            async def asked(path: str) -> int:
                get = await client.get(path)
                sent = metrics.registry.get_sample_value("yolo_assigner_sent_bytes_total")
                head = await client.head(path)
                assert (head.status_code, head.content) == (get.status_code, b"")
                assert {**head.headers, "x-request-id": ""} == {**get.headers, "x-request-id": ""}
                assert metrics.registry.get_sample_value("yolo_assigner_sent_bytes_total") == sent
                return head.status_code

            assert [await asked(path) for path in ("/v2/health/live", "/v2/health/ready", "/v2")] == [200, 503, 401]
            runner.may_load.set()
            await until_ready(client)
            assert await asked("/v2/health/ready") == 200
            labels = {"route": "health", "status": "503"}
            assert (metrics.registry.get_sample_value("yolo_assigner_requests_total", labels) or 0) >= 2
            document = (await client.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"})).json()
            assert [list(document["paths"][f"/v2/health/{name}"]) for name in ("live", "ready")] == [["get"]] * 2

    asyncio.run(check())

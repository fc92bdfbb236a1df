"""Memory of GPUs that callers share; tests/gpu does the same with a real one."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.serve.conftest import Live, assigner_inputs
from tests.serve.test_app import Started, SumRunner, until_ready
from tests.serve.test_cli import refuses, run
from yolo_assigner.serve.inference.runners import cuda
from yolo_assigner.serve.shared_memory.cuda import Gpus
from yolo_assigner.serve.shared_memory.gpu import gpu as opened_gpu
from yolo_assigner.serve.shared_memory.object import DIRECTORY
from yolo_assigner.serve.shared_memory.regions import Regions
from yolo_assigner.serve.wire.dtypes import wire_name

pytest.importorskip("cuda.bindings", reason="without CUDA's bindings there are no handles")
from tests.serve.shared_memory.fake_cuda import FakeCuda

ROOM = 2**20
PATH = "/v2/cudasharedmemory"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "bindings", lambda: fake)
    monkeypatch.setattr(cuda, "driver", lambda: fake)
    opened_gpu.cache_clear()
    return fake


def scenario(play: Callable[[httpx.AsyncClient], Awaitable[None]], prefix: str | None = None) -> None:
    async def go() -> None:
        runner = SumRunner()
        runner.may_load.set()
        async with Started(runner, regions=Regions(prefix, ROOM, gpus=Gpus())) as client:
            await until_ready(client)
            await play(client)

    asyncio.run(go())


def region(handle: bytes, byte_size: Any = ROOM, device_id: Any = 0) -> dict[str, Any]:
    """As the client library sends it."""
    return {
        "raw_handle": {"b64": base64.b64encode(handle).decode()},
        "device_id": device_id,
        "byte_size": byte_size,
    }


def request_in(memory: np.ndarray[Any, Any], name: str = "r") -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Put inputs into memory; the request whose output goes behind them, and what that is to be."""
    rows, end = [], 0
    arrays = assigner_inputs(images=2)
    for key, array in arrays.items():
        place = {"shared_memory_region": name, "shared_memory_byte_size": array.nbytes, "shared_memory_offset": end}
        rows.append({"name": key, "shape": list(array.shape), "datatype": wire_name(array.dtype), "parameters": place})
        memory[end : end + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        end += array.nbytes
    expected = arrays["pd_scores"].sum(axis=2)
    place = {"shared_memory_region": name, "shared_memory_byte_size": expected.nbytes, "shared_memory_offset": end}
    return {"inputs": rows, "outputs": [{"name": "target_weights", "parameters": place}]}, expected


@pytest.mark.parametrize("index", [0, 1])
def test_tensors_come_from_a_gpu_and_go_there(gpu: FakeCuda, index: int) -> None:
    handle = gpu.allocate(ROOM, index)
    memory = gpu.allocations[handle][1]

    async def play(client: httpx.AsyncClient) -> None:
        asked = await client.post(f"{PATH}/region/r/register", json=region(handle, device_id=index))
        assert (asked.status_code, asked.json()) == (200, {})
        status = {"name": "r", "device_id": index, "byte_size": ROOM}
        assert (await client.get(f"{PATH}/status")).json() == [status]
        assert (await client.get(f"{PATH}/region/r/status")).json() == [status]
        assert "cuda_shared_memory" in (await client.get("/v2")).json()["extensions"]
        document, expected = request_in(memory)
        reply = await client.post("/v2/models/toy/infer", json=document)
        assert reply.status_code == 200, reply.text
        place = document["outputs"][0]["parameters"]
        assert reply.json()["outputs"][0]["parameters"] == place
        end = place["shared_memory_offset"]
        assert memory[end : end + expected.nbytes].tobytes() == expected.tobytes()
        assert (await client.post(f"{PATH}/region/r/unregister")).status_code == 200
        assert (await client.get(f"{PATH}/status")).json() == []
        assert (await client.post("/v2/models/toy/infer", json=document)).status_code == 400

    scenario(play)
    assert gpu.opened == []  # nothing stays open


def test_memory_that_its_owner_freed(gpu: FakeCuda) -> None:
    """It is an error of each request that names it; its name can be taken again, and others go on."""
    first, second = gpu.allocate(ROOM), gpu.allocate(ROOM)

    async def play(client: httpx.AsyncClient) -> None:
        for name, handle in (("r", first), ("s", second)):
            assert (await client.post(f"{PATH}/region/{name}/register", json=region(handle))).status_code == 200
        taken = await client.post(f"{PATH}/region/r/register", json=region(second))
        assert "registered already" in taken.json()["error"]
        document, _ = request_in(gpu.allocations[first][1])
        del gpu.allocations[first]
        gone = await client.post("/v2/models/toy/infer", json=document)
        assert gone.status_code == 400
        assert "region 'r': its memory on GPU 0 cannot be used (cudaIpcOpenMemHandle failed" in gone.json()["error"]
        document, _ = request_in(gpu.allocations[second][1], "s")
        assert (await client.post("/v2/models/toy/infer", json=document)).status_code == 200
        assert (await client.post(f"{PATH}/region/r/register", json=region(second))).status_code == 200

    scenario(play)
    assert gpu.opened == []


def test_a_gpu_that_fails_in_the_middle(gpu: FakeCuda) -> None:
    handle = gpu.allocate(ROOM)

    async def play(client: httpx.AsyncClient) -> None:
        await client.post(f"{PATH}/region/r/register", json=region(handle))
        document, _ = request_in(gpu.allocations[handle][1])
        gpu.fails.add("cudaStreamSynchronize")
        reply = await client.post("/v2/models/toy/infer", json=document)
        assert (reply.status_code, "cudaStreamSynchronize failed" in reply.json()["error"]) == (400, True)
        gpu.fails.clear()
        assert (await client.post("/v2/models/toy/infer", json=document)).status_code == 200

    scenario(play)
    assert gpu.opened == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"byte_size": ROOM + 1}, f"is {ROOM + 1} bytes, but the memory of its handle has {ROOM}"),
        ({"byte_size": 0}, "write a whole number of bytes, 1 or more"),
        ({"device_id": 2}, "there is no GPU 2, only 2 of them"),
        ({"device_id": "0"}, "device_id is '0'; write the index"),
        ({"device_id": -1}, "device_id is -1; write the index"),
        ({"raw_handle": "AAAA"}, "raw_handle is no handle of 64 bytes"),
        ({"raw_handle": {"b64": "AAAA"}}, "raw_handle is no handle of 64 bytes"),
        ({"raw_handle": {"b64": "no base64"}}, "raw_handle is no handle of 64 bytes"),
        ({"raw_handle": {"b64": base64.b64encode(bytes(64)).decode()}}, "cudaIpcOpenMemHandle failed"),
        ({"raw_handle": None, "key": "/k"}, "raw_handle is missing"),
    ],
)
def test_what_cannot_be_registered(gpu: FakeCuda, change: dict[str, Any], message: str) -> None:
    handle = gpu.allocate(ROOM)

    async def play(client: httpx.AsyncClient) -> None:
        reply = await client.post(f"{PATH}/region/r/register", json=region(handle) | change)
        assert (reply.status_code, message in reply.json()["error"]) == (400, True), reply.text
        for key in ("raw_handle", "device_id", "byte_size"):
            document = {name: value for name, value in region(handle).items() if name != key}
            reply = await client.post(f"{PATH}/region/r/register", json=document)
            assert reply.json()["error"].startswith(f"{key} is missing"), reply.text
        assert (await client.get(f"{PATH}/status")).json() == []
        assert (await client.get(f"{PATH}/region/r/status")).status_code == 404

    scenario(play)
    assert gpu.opened == []


@pytest.mark.skipif(not DIRECTORY.is_dir(), reason="shared memory cannot be looked at like files here")
def test_both_kinds_have_one_set_of_names(gpu: FakeCuda) -> None:
    """But each kind's routes show and forget its own."""
    handle, path = gpu.allocate(ROOM), DIRECTORY / "yolo-assigner-cuda-both"
    system = {"key": f"/{path.name}", "byte_size": 8}

    async def play(client: httpx.AsyncClient) -> None:
        assert (await client.post(f"{PATH}/region/r/register", json=region(handle))).status_code == 200
        assert (await client.post("/v2/systemsharedmemory/region/r/register", json=system)).status_code == 400
        assert (await client.post("/v2/systemsharedmemory/region/s/register", json=system)).status_code == 200
        assert [row["name"] for row in (await client.get(f"{PATH}/status")).json()] == ["r"]
        assert [row["name"] for row in (await client.get("/v2/systemsharedmemory/status")).json()] == ["s"]
        assert (await client.get(f"{PATH}/region/s/status")).status_code == 404
        assert (await client.post(f"{PATH}/unregister")).status_code == 200
        assert [row["name"] for row in (await client.get("/v2/systemsharedmemory/status")).json()] == ["s"]
        extensions = (await client.get("/v2")).json()["extensions"]
        assert {"system_shared_memory", "cuda_shared_memory"} <= set(extensions)

    path.write_bytes(bytes(8))
    try:
        scenario(play, path.name)
    finally:
        path.unlink()


def test_one_kind_alone(gpu: FakeCuda) -> None:  # noqa: ARG001
    async def play(client: httpx.AsyncClient) -> None:
        reply = await client.post("/v2/systemsharedmemory/region/r/register", json={"key": "/k", "byte_size": 8})
        assert (reply.status_code, "system shared memory is switched off" in reply.json()["error"]) == (501, True)

    scenario(play)


def test_it_is_off_unless_it_was_asked_for(live: Live) -> None:
    """As the protocol's table has it: nothing is registered, and nothing can be."""
    with InferenceServerClient(live.url) as client:
        assert client.get_cuda_shared_memory_status() == []
        assert "cuda_shared_memory" not in client.get_server_metadata()["extensions"]
        with pytest.raises(InferenceServerException, match="CUDA shared memory is switched off; start the server with"):
            client.register_cuda_shared_memory("r", base64.b64encode(bytes(64)).decode(), 0, 8)
    for path in ("region/r/unregister", "unregister"):
        assert live.send("POST", f"{PATH}/{path}", json.dumps({}).encode()).status == 501


def test_without_a_gpu_it_is_refused_at_the_start(artifacts_dir: Path) -> None:
    """With the real bindings, and what they say here."""
    try:
        Gpus().check()
    except ValueError:
        pass
    else:
        pytest.skip("there is a GPU; tests/gpu uses it")
    done = run("--artifacts", artifacts_dir, "--port", "0", "--cuda-shared-memory")
    refuses(done, "CUDA shared memory needs a GPU", "serve without --cuda-shared-memory")

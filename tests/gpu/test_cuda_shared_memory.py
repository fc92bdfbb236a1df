"""Memory of a real GPU, shared by the protocol's client library as it is, with a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.gpu.conftest import needs_gpu

http = pytest.importorskip("tritonclient.http")
shared = pytest.importorskip("tritonclient.utils.cuda_shared_memory")
for module in ("fastapi", "orjson", "uvicorn"):
    pytest.importorskip(module)
from tests.serve.conftest import Live, loss_inputs, start, stop, worker_of  # noqa: E402 - it imports those

pytestmark = needs_gpu


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("artifacts")
    command = [
        sys.executable,
        "-m",
        "yolo_assigner",
        "export",
        "onnx",
        "--out",
        str(folder),
        "--num-classes",
        "3",
        "--model",
        "loss",
    ]
    subprocess.run(command, check=True)
    live = start("--artifacts", folder, "--cuda-shared-memory")
    yield live
    assert stop(live) == 0


@contextmanager
def memory(live: Live, name: str, size: int) -> Iterator[Any]:
    """Memory of the GPU, registered."""
    handle = shared.create_shared_memory_region(name, size, 0)
    try:
        with http.InferenceServerClient(live.url, network_timeout=60) as client:
            client.register_cuda_shared_memory(name, shared.get_raw_handle(handle).decode(), 0, size)
            yield handle
            client.unregister_cuda_shared_memory(name)
    finally:
        shared.destroy_shared_memory_region(handle)


def placed(handle: Any, name: str, arrays: dict[str, Any]) -> list[Any]:
    """Inputs that lie one after the other in memory."""
    shared.set_shared_memory_region(handle, list(arrays.values()))
    inputs, end = [], 0
    for key, array in arrays.items():
        one = http.InferInput(key, list(array.shape), http.np_to_triton_dtype(array.dtype))
        one.set_shared_memory(name, array.nbytes, end)
        inputs.append(one)
        end += array.nbytes
    return inputs


def test_inputs_and_outputs_on_the_gpu(server: Live) -> None:
    """The same bits as over the socket, also after the engines' process was killed."""
    arrays = loss_inputs()
    size = sum(array.nbytes for array in arrays.values())
    over_socket = []
    for key, array in arrays.items():
        over_socket.append(http.InferInput(key, list(array.shape), http.np_to_triton_dtype(array.dtype)))
        over_socket[-1].set_data_from_numpy(array)
    with memory(server, "in", size) as source, memory(server, "out", 4) as target:
        inputs, output = placed(source, "in", arrays), http.InferRequestedOutput("loss")
        output.set_shared_memory("out", 4)
        with http.InferenceServerClient(server.url, network_timeout=60) as client:
            expected = client.infer("loss", over_socket).as_numpy("loss")
            for _ in range(2):
                shared.set_shared_memory_region(target, [np.full(1, np.nan, np.float32)])
                client.infer("loss", inputs, outputs=[output])
                np.testing.assert_array_equal(shared.get_contents_as_numpy(target, np.float32, [1])[0], expected)
                os.kill(worker_of(server), signal.SIGKILL)


def test_memory_that_its_owner_freed(server: Live) -> None:
    """An error of the request; the next one is answered."""
    arrays = loss_inputs()
    size = sum(array.nbytes for array in arrays.values())
    handle = shared.create_shared_memory_region("gone", size, 0)
    with http.InferenceServerClient(server.url, network_timeout=60) as client:
        client.register_cuda_shared_memory("gone", shared.get_raw_handle(handle).decode(), 0, size)
        inputs = placed(handle, "gone", arrays)
        shared.destroy_shared_memory_region(handle)
        with pytest.raises(Exception, match="cannot be used"):
            client.infer("loss", inputs)
        client.unregister_cuda_shared_memory()
    test_inputs_and_outputs_on_the_gpu(server)


def test_more_than_was_allocated(server: Live) -> None:
    handle = shared.create_shared_memory_region("small", 4096, 0)
    try:
        with (
            http.InferenceServerClient(server.url) as client,
            pytest.raises(Exception, match="the memory of its handle has"),
        ):
            client.register_cuda_shared_memory("small", shared.get_raw_handle(handle).decode(), 0, 2**24)
    finally:
        shared.destroy_shared_memory_region(handle)

"""A server with shared memory switched on, and its clients."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import shared_memory

from tests.serve.conftest import LIMIT, Live, Reply, binary_rows, loss_inputs, start, stop
from yolo_assigner.serve.shared_memory.object import DIRECTORY
from yolo_assigner.serve.wire.dtypes import Array, wire_name

PREFIX = f"yolo-assigner-test-{os.getpid()}-"
REGIONS = "/v2/systemsharedmemory"
ALIGNMENT = 64
SIZE = 64 * 1024
# Elsewhere shared memory cannot be read like files, and the server refuses the setting.
collect_ignore_glob = [] if DIRECTORY.is_dir() else ["test_*.py"]


@pytest.fixture(scope="session")
def shm(dense_dir: Path) -> Iterator[Live]:
    """Start one server for all tests of this folder."""
    server = start("--artifacts", dense_dir, "--max-request-bytes", str(LIMIT), "--shared-memory", f"/{PREFIX}")
    yield server
    assert stop(server) == 0


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove objects, and check that the server a test used still answers."""
    yield
    for path in DIRECTORY.glob(f"{PREFIX}*"):
        path.unlink() if not path.is_dir() else path.rmdir()
    if "shm" in request.fixturenames:
        live: Live = request.getfixturevalue("shm")
        assert live.send("POST", f"{REGIONS}/unregister").status == 200
        rows, blob = binary_rows(loss_inputs(images=1))
        assert live.infer("loss", {"inputs": rows}, blob).status == 200


def refused(reply: Reply, *words: str, status: int = 400) -> None:
    assert reply.status == status, reply.body
    for word in words:
        assert word in reply.error


@contextmanager
def client_memory(live: Live, name: str, size: int, offset: int = 0) -> Iterator[Any]:
    """Make an object with the client library and register it from ``offset`` on, under the same name."""
    handle = shared_memory.create_shared_memory_region(name, f"/{PREFIX}{name}", offset + size)
    try:
        with InferenceServerClient(live.url) as client:
            client.register_system_shared_memory(name, f"/{PREFIX}{name}", size, offset)
            yield handle
            client.unregister_system_shared_memory(name)
    finally:
        shared_memory.destroy_shared_memory_region(handle)


def spans(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Return offsets of tensors that lie one after the other, and the bytes of all."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, max(end, 1)


def placed_inputs(handle: Any, region: str, arrays: Mapping[str, Array], start: int = 0) -> list[InferInput]:
    """Copy inputs into an object whose region begins at byte ``start``, and return their descriptions."""
    offsets, _ = spans({name: array.nbytes for name, array in arrays.items()})
    inputs = []
    for name, array in arrays.items():
        shared_memory.set_shared_memory_region(handle, [array], start + offsets[name])
        tensor = InferInput(name, list(array.shape), wire_name(array.dtype))
        inputs.append(tensor.set_shared_memory(region, array.nbytes, offsets[name]))
    return inputs


def placed_outputs(region: str, sizes: Mapping[str, int]) -> list[InferRequestedOutput]:
    offsets, _ = spans(sizes)
    outputs = []
    for name, size in sizes.items():
        outputs.append(InferRequestedOutput(name))
        outputs[-1].set_shared_memory(region, size, offsets[name])
    return outputs


def over_the_socket(live: Live, model: str, arrays: Mapping[str, Array], outputs: list[str]) -> dict[str, Array]:
    inputs = [InferInput(name, list(array.shape), wire_name(array.dtype)) for name, array in arrays.items()]
    for tensor, array in zip(inputs, arrays.values(), strict=True):
        tensor.set_data_from_numpy(array)
    with InferenceServerClient(live.url) as client:
        reply = client.infer(model, inputs, outputs=[InferRequestedOutput(name) for name in outputs])
    return {name: reply.as_numpy(name) for name in outputs}


def place(region: Any, byte_size: Any, offset: Any = 0) -> dict[str, Any]:
    values = {"region": region, "byte_size": byte_size, "offset": offset}
    return {f"shared_memory_{key}": value for key, value in values.items() if value is not None}


def register(live: Live, name: str = "r", **changes: Any) -> Reply:
    """Register an object of ``SIZE`` bytes; make it if it does not exist yet."""
    path = DIRECTORY / f"{PREFIX}object"
    if not path.exists():
        path.write_bytes(bytes(SIZE))
    document = {"key": f"/{path.name}", "offset": 0, "byte_size": SIZE} | changes
    wanted = {key: value for key, value in document.items() if value is not None}
    return live.send("POST", f"{REGIONS}/region/{name}/register", wanted)


def feat_2(**changes: Any) -> dict[str, Any]:
    """Describe the smallest map of ``loss_inputs()``, 2144 bytes, at the beginning of region ``r``."""
    return {"name": "feat_2", "shape": [2, 67, 2, 2], "datatype": "FP32", "parameters": place("r", 2144)} | changes


def ask(live: Live, *rows: dict[str, Any], outputs: Any = ()) -> Reply:
    """Ask for the loss of ``loss_inputs()``, with some rows replaced."""
    names = [row["name"] for row in rows]
    others, blob = binary_rows({name: array for name, array in loss_inputs().items() if name not in names})
    return live.infer("loss", {"inputs": [*others, *rows], "outputs": list(outputs)}, blob)

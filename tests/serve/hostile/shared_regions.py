"""Requests with wrong places in shared memory, and wrong registrations of regions. Linux only."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from tests.serve.hostile.mutations import mutate_tree
from tests.serve.hostile.requests import Draft, Request, ask, inputs_of
from yolo_assigner.serve.wire.dtypes import wire_name

PREFIX = "yolo-assigner-hostile-"
SOURCE, TARGET = "source", "target"
SIZE = 2**18
PLACES = (
    0, 1, 64, SIZE - 8, SIZE - 1, SIZE, SIZE + 1, 2**31, 2**32, 2**63 - 1, 2**63, -1, 10**30, 0.5, "0", None, True,
)  # fmt: skip


@contextmanager
def objects(port: int) -> Iterator[Mapping[str, bytes]]:
    """Register two regions, one with inputs and one for outputs, and unlink them at the end.

    Args:
        port: Port of the server.

    Yields:
        Content of the first by its region's name.
    """
    made = {name: SharedMemory(f"{PREFIX}{name}", create=True, size=SIZE) for name in (SOURCE, TARGET)}
    try:
        source = np.random.default_rng(0).standard_normal(SIZE // 4, np.float32).tobytes()
        np.ndarray(SIZE, np.uint8, made[SOURCE].buf)[:] = np.frombuffer(source, np.uint8)
        for name, memory in made.items():
            _post(port, f"region/{name}/register", {"key": f"/{memory.name}", "byte_size": SIZE})
        yield {SOURCE: source}
        _post(port, "unregister", {})
    finally:
        for memory in made.values():
            memory.close()
            memory.unlink()


def _post(port: int, path: str, document: object) -> None:
    if ask(port, Request(f"/v2/systemsharedmemory/{path}", (), json.dumps(document).encode())).status != 200:
        raise RuntimeError(f"{path} failed")


def shared(rng: random.Random) -> Request:
    """Draw a registration, or a request that uses the regions."""
    return _registration(rng) if rng.random() < 0.3 else _use(rng)


def _registration(rng: random.Random) -> Request:
    document = {"key": f"/{PREFIX}{SOURCE}", "offset": rng.choice(PLACES), "byte_size": rng.choice(PLACES)}
    for _ in range(rng.randint(0, 2)):
        mutate_tree(document, rng)
    if rng.random() < 0.2:
        document["key"] = rng.choice(("/etc/passwd", f"/{PREFIX}../x", f"{PREFIX}\0", f"/{PREFIX}none", "/" * 3000))
    name = rng.choice((SOURCE, "new", "x" * 300, "%2e%2e", "%00"))
    verb = rng.choice(("register", "register", "register", "status"))
    return Request(f"/v2/systemsharedmemory/region/{name}/{verb}", (), json.dumps(document).encode())


def _use(rng: random.Random) -> Request:
    arrays = inputs_of("loss", rng, images=1, slots=0)
    rows: list[dict[str, Any]] = []
    end = 0
    for name, array in arrays.items():
        place = {"shared_memory_region": SOURCE, "shared_memory_byte_size": array.nbytes, "shared_memory_offset": end}
        row = {"name": name, "shape": list(array.shape), "datatype": wire_name(array.dtype), "parameters": place}
        rows.append(row)
        end += -(-array.nbytes // 64) * 64
    for _ in range(rng.randint(0, 2)):
        parameters = rng.choice(rows)["parameters"]
        key = rng.choice(sorted(parameters))
        parameters[key] = rng.choice((*PLACES, "nobody")) if key != "shared_memory_region" else "nobody"
    document: dict[str, object] = {"inputs": rows}
    if rng.random() < 0.5:
        size, offset = rng.choice((*PLACES, 4, 4)), rng.choice((*PLACES, 0, 0))
        place = {"shared_memory_region": TARGET, "shared_memory_byte_size": size, "shared_memory_offset": offset}
        document["outputs"] = [{"name": "loss", "parameters": place}, {"name": "image_sums"}]
    return Draft("loss", document, b"").request()

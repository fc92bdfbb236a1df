"""Parts of shared memory by themselves, where a live server would not show the property."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.conftest import assigner_inputs
from tests.serve.test_app import Started, SumRunner, until_ready
from tests.serve.test_cli import refuses, run
from yolo_assigner.serve.errors import BadRequestError, BusyError, TooLargeError, UnsupportedError
from yolo_assigner.serve.shared_memory.object import DIRECTORY, opened
from yolo_assigner.serve.shared_memory.regions import MAX_REGIONS, Regions
from yolo_assigner.serve.wire.buffers import ALIGNMENT, TensorMemory
from yolo_assigner.serve.wire.dtypes import wire_name
from yolo_assigner.serve.wire.request import decode_request
from yolo_assigner.serve.wire.tensors import Place

PREFIX = f"yolo-assigner-parts-{os.getpid()}-"
MIB = 2**20


@pytest.fixture
def path() -> Iterator[Path]:
    """Make an object of 1 MiB."""
    name = DIRECTORY / f"{PREFIX}object"
    name.write_bytes(bytes(MIB))
    yield name
    name.unlink(missing_ok=True)


@pytest.mark.parametrize("sizes", [[5], [0], [64, 0, 1, 100], [MIB - 1, 1]])
def test_pieces_are_aligned_and_apart(sizes: list[int]) -> None:
    pieces = TensorMemory(MIB, MIB).take(sizes)
    assert [len(piece) for piece in pieces] == sizes
    for number, piece in enumerate(pieces):
        assert np.frombuffer(piece, np.uint8).ctypes.data % ALIGNMENT == 0 or not len(piece)
        piece[:] = bytes([number + 1]) * len(piece)
    assert [set(piece) for piece in pieces] == [{number + 1} if size else set() for number, size in enumerate(sizes)]


def test_memory_is_used_again_when_nothing_is_a_view_of_it() -> None:
    memory = TensorMemory(MIB, 4 * MIB)

    def address(array: Any) -> int:
        value: int = array.__array_interface__["data"][0]
        return value

    first = [np.frombuffer(piece, np.float32).reshape(10, -1) for piece in memory.take([4000, 4000])]
    taken = address(first[0])
    kept = first.pop()[1:]  # of one tensor alone, and but a part
    del first
    assert address(np.frombuffer(memory.take([8000])[0], np.uint8)) != taken
    del kept
    assert address(np.frombuffer(memory.take([8000])[0], np.uint8)) == taken


def test_memory_is_bounded() -> None:
    memory = TensorMemory(3 * MIB, 4 * MIB)
    with pytest.raises(TooLargeError, match="--max-request-bytes"):
        memory.take([2 * MIB, MIB + 1])
    first = np.frombuffer(memory.take([3 * MIB])[0], np.uint8)
    second = memory.take([MIB])
    with pytest.raises(BusyError, match="try again"):
        memory.take([1])
    del second
    assert memory.take([MIB])
    del first
    assert memory.take([3 * MIB])
    assert TensorMemory(3 * MIB, 1).take([3 * MIB])  # alone it is let in


def test_threads_never_share_memory() -> None:
    """Each thread keeps its piece for a moment, in which no other thread may write there."""
    memory = TensorMemory(MIB, 64 * MIB)
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(200):
            piece = np.frombuffer(memory.take([1000 * (1 + turn % 7)])[0], np.uint8)
            piece[:] = number
            if not (piece == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_there_are_only_so_many_regions(path: Path) -> None:
    """Regions whose objects are gone make room: clients that died did not unregister."""
    regions = Regions(PREFIX, MIB)
    path.with_name(f"{PREFIX}other").touch()
    os.truncate(path.with_name(f"{PREFIX}other"), 1)
    for number in range(MAX_REGIONS):
        regions.register(f"r{number}", f"{PREFIX}object" if number else f"{PREFIX}other", 0, 1)
    with pytest.raises(BadRequestError, match="1024 regions are registered"):
        regions.register("more", path.name, 0, 1)
    path.with_name(f"{PREFIX}other").unlink()
    regions.register("more", path.name, 0, 1)
    assert len(regions.status()) == MAX_REGIONS
    with pytest.raises(BadRequestError, match="no region 'r0' is registered"):
        regions.check(Place("r0", 0, 1))
    path.unlink()
    path.write_bytes(b"x")  # another object of the same key
    regions.register("one", path.name, 0, 1)
    assert [row["name"] for row in regions.status()] == ["one"]


def test_a_read_that_comes_back_short(path: Path) -> None:
    """The object shrinks after its size was checked, which happens too seldom to be shown with a server."""
    with opened(path.name) as source:
        assert source.size == MIB
        os.truncate(path, 100)
        with pytest.raises(BadRequestError, match="became shorter while it was read"):
            source.read(memoryview(bytearray(200)), 0)


@pytest.mark.parametrize("prefix", ["", "/", ".", "..", "../", "//x", "/x/", "a/b", "-x", "ä", "x\0", "x\n"])
def test_invalid_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="the prefix of shared memory is"):
        Regions(prefix, MIB)


def test_a_bad_prefix_on_the_command_line(artifacts_dir: Path) -> None:
    refuses(run("--artifacts", artifacts_dir, "--shared-memory", "/"), "the prefix of shared memory is '/'")


class Watched(Regions):
    """Regions that remember the threads which read and wrote them."""

    def __init__(self, prefix: str, limit: int) -> None:
        super().__init__(prefix, limit)
        self.threads: set[str] = set()

    def read(self, place: Place, target: memoryview) -> None:
        """Remember the thread, then do as the base class."""
        self.threads.add(threading.current_thread().name)
        super().read(place, target)

    def write(self, place: Place, data: memoryview) -> None:
        """Remember the thread, then do as the base class."""
        self.threads.add(threading.current_thread().name)
        super().write(place, data)


@pytest.mark.parametrize("side", [64, 640])
def test_large_tensors_are_copied_outside_the_event_loop(path: Path, side: int) -> None:
    """This holds however small the body is that names them."""
    arrays = assigner_inputs(images=2, side=side)
    regions = Watched(PREFIX, MIB)
    regions.register("r", path.name, 0, MIB)
    rows: list[dict[str, Any]] = []
    end = 0
    for name, array in arrays.items():
        rows.append({"name": name, "shape": list(array.shape), "datatype": wire_name(array.dtype)})
        rows[-1]["parameters"] = place(array.nbytes, end)
        regions.write(Place("r", end, array.nbytes), memoryview(array.tobytes()))
        end += array.nbytes
    size = arrays["pd_scores"][..., 0].nbytes
    document = {"inputs": rows, "outputs": [{"name": "target_weights", "parameters": place(size, end)}]}
    regions.threads.clear()

    async def scenario() -> None:
        runner = SumRunner()
        runner.may_load.set()
        async with Started(runner, regions=regions) as client:
            await until_ready(client)
            assert (await client.post("/v2/models/toy/infer", json=document)).status_code == 200

    asyncio.run(scenario())
    sums = np.frombuffer(path.read_bytes()[end : end + size], np.float32)
    np.testing.assert_array_equal(sums, arrays["pd_scores"].sum(axis=2).ravel())
    assert (threading.main_thread().name in regions.threads) == (side == 64)
    assert regions.threads


def place(byte_size: int, offset: int) -> dict[str, Any]:
    return {"shared_memory_region": "r", "shared_memory_byte_size": byte_size, "shared_memory_offset": offset}


KEYS = [f"shared_memory_{key}" for key in ("region", "byte_size", "offset")] + ["binary_data_size", "classification"]
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.just(8)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES), st.sampled_from(["inputs", "outputs"]), st.booleans())
@settings(deadline=None)
def test_any_place_is_read_or_refused(parameters: dict[str, Any], key: str, shared_memory: bool) -> None:
    row = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": parameters}
    body = json.dumps({key: [row]}, allow_nan=True).encode()
    with suppress(BadRequestError, UnsupportedError):
        request = decode_request(memoryview(body), None, shared_memory=shared_memory)
        places = [tensor.place for tensor in request.shared.values()]
        places += [output.place for output in request.outputs if output.place is not None]
        assert shared_memory or not places
        for place in places:
            assert (type(place.region), type(place.offset), type(place.byte_size)) == (str, int, int)
            assert min(place.offset, place.byte_size) >= 0

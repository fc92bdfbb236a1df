"""Objects that shrink, vanish or are replaced, and servers that are killed."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
from tritonclient.http import InferenceServerClient
from tritonclient.utils import shared_memory

from tests.serve.conftest import Live, loss_inputs, start, stop
from tests.serve.shared_memory.conftest import (
    PREFIX,
    SIZE,
    ask,
    client_memory,
    feat_2,
    place,
    placed_inputs,
    refused,
    register,
    spans,
)
from yolo_assigner.serve.shared_memory.object import DIRECTORY


def test_objects_that_change_after_they_were_registered(shm: Live) -> None:
    path = DIRECTORY / f"{PREFIX}object"
    to_memory = [{"name": "loss", "parameters": place("r", 4, SIZE - 4)}]
    assert register(shm).status == 200

    def refused_both_ways(*words: str) -> None:
        refused(ask(shm, feat_2()), *words)
        refused(ask(shm, outputs=to_memory), *words)

    for size in (SIZE - 1, 1, 0):
        os.truncate(path, size)
        refused_both_ways(f"object '/{path.name}' has {size} bytes", f"is {SIZE} bytes at offset 0")
        assert path.stat().st_size == size  # an output has not made it longer
    os.truncate(path, 2 * SIZE)
    assert ask(shm, feat_2()).status == 200
    path.unlink()
    refused_both_ways("there is no shared memory object")
    assert not path.exists()
    path.write_bytes(bytes(SIZE))
    refused_both_ways("is another one than was registered")
    path.unlink()
    other = path.with_name(f"{path.name}-other")
    other.write_bytes(bytes(SIZE))
    path.symlink_to(other)
    refused_both_ways("symbolic links")
    path.unlink()
    path.write_bytes(bytes(SIZE))
    path.chmod(0)
    if os.geteuid() != 0:  # root may all the same
        refused_both_ways("Permission denied")


def test_an_object_that_shrinks_while_it_is_read(shm: Live) -> None:
    """Mapping its pages would kill the server sooner or later; every request must be answered."""
    arrays = loss_inputs(images=4, side=256)
    _, size = spans({name: array.nbytes for name, array in arrays.items()})
    path = DIRECTORY / f"{PREFIX}r"
    done = threading.Event()
    with client_memory(shm, "r", size) as handle:
        inputs = placed_inputs(handle, "r", arrays)
        document = {"inputs": [tensor._get_tensor() for tensor in inputs]}
        document["outputs"] = [{"name": "fg_mask", "parameters": place("r", 4 * 1344, size - 4 * 1344)}]

        def squeeze() -> None:
            while not done.is_set():
                os.truncate(path, 4096)
                os.truncate(path, size)  # now of zeros

        thread = threading.Thread(target=squeeze)
        thread.start()
        try:
            statuses = {shm.infer("loss", document).status for _ in range(100)}
        finally:
            done.set()
            thread.join()
        assert statuses <= {200, 400}
        assert 400 in statuses  # it did happen
        assert shm.infer("loss", document).status == 200


def test_a_server_that_is_killed_leaves_what_it_was_given(artifacts_dir: Path, tmp_path: Path) -> None:
    """It makes and removes no objects: the next server uses the same one, and the client removes it."""
    for name in ("loss.onnx", "loss.json"):
        (tmp_path / name).symlink_to(artifacts_dir / name)
    arguments = ("--artifacts", tmp_path, "--shared-memory", PREFIX)
    arrays = loss_inputs()
    handle = shared_memory.create_shared_memory_region("r", f"/{PREFIX}r", SIZE)
    inputs, results = placed_inputs(handle, "r", arrays), []
    for number in range(2):
        live = start(*arguments)
        with InferenceServerClient(live.url) as client:
            assert client.get_system_shared_memory_status() == []
            client.register_system_shared_memory("r", f"/{PREFIX}r", SIZE)
            results.append(client.infer("loss", inputs).as_numpy("image_sums"))
        if number == 0:
            live.process.send_signal(signal.SIGKILL)
            live.process.wait(timeout=120)
            assert live.process.stdout is not None
            live.process.stdout.close()
        else:
            assert stop(live) == 0
        assert (DIRECTORY / f"{PREFIX}r").stat().st_size == SIZE
    np.testing.assert_array_equal(*results)
    shared_memory.destroy_shared_memory_region(handle)
    assert not (DIRECTORY / f"{PREFIX}r").exists()


def test_memory_of_an_unlinked_object_is_free(shm: Live) -> None:
    """A server that kept a registered object open would keep its memory."""
    assert register(shm).status == 200
    assert ask(shm, feat_2()).status == 200
    path = DIRECTORY / f"{PREFIX}object"
    path.unlink()
    process = Path(f"/proc/{shm.process.pid}")
    held = (process / "maps").read_text().splitlines()
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # a connection that has just been closed
            held.append(str(descriptor.readlink()))
    assert any("socket:" in line for line in held)  # it is the server's list
    assert not [line for line in held if path.name in line]

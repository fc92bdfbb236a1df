"""Regions by name, what is refused while shared memory is off, and what this server never does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.serve.conftest import Live
from tests.serve.shared_memory.conftest import PREFIX, REGIONS, SIZE, client_memory, refused, register
from yolo_assigner.serve.shared_memory.object import DIRECTORY


def test_regions_through_the_client_library(shm: Live) -> None:
    with (
        InferenceServerClient(shm.url) as client,
        client_memory(shm, "one", 4096),
        client_memory(shm, "two", 4096, offset=512),
    ):
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "system_shared_memory"]
        one = {"name": "one", "key": f"/{PREFIX}one", "offset": 0, "byte_size": 4096}
        two = {"name": "two", "key": f"/{PREFIX}two", "offset": 512, "byte_size": 4096}
        assert client.get_system_shared_memory_status() == [one, two]
        assert client.get_system_shared_memory_status("two") == [two]
        with pytest.raises(InferenceServerException, match="no region 'three' is registered"):
            client.get_system_shared_memory_status("three")
        client.register_system_shared_memory("50 % of one", f"{PREFIX}one", 2048, 2048)  # as quoted in the path
        names = [row["name"] for row in client.get_system_shared_memory_status()]
        assert names == ["one", "two", "50 % of one"]
        client.unregister_system_shared_memory("two")
        client.unregister_system_shared_memory("two")  # what is not there need not be forgotten, as with Triton
        assert len(client.get_system_shared_memory_status()) == 2
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == []


BAD_REGISTRATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no key": ({"key": None}, "key is missing"),
    "no size": ({"byte_size": None}, "byte_size is missing"),
    "key is a number": ({"key": 7}, "key is 7"),
    "no such object": ({"key": f"/{PREFIX}nothing"}, "there is no shared memory object"),
    "outside the prefix": ({"key": "/psm_0"}, f"begin with '{PREFIX}'"),
    "outside the folder": ({"key": "/../etc/passwd"}, f"begin with '{PREFIX}'"),
    "outside the folder, after the prefix": ({"key": f"/{PREFIX}/../../../etc/passwd"}, "no slash after it"),
    "zero byte": ({"key": f"/{PREFIX}object\0"}, "key is"),
    "name longer than files have": ({"key": f"/{PREFIX}{'x' * 300}"}, "File name too long"),
    "folder": ({"key": f"/{PREFIX}folder"}, "Is a directory"),
    "link to an object": ({"key": f"/{PREFIX}link"}, "symbolic links"),
    "link to a file elsewhere": ({"key": f"/{PREFIX}way_out"}, "symbolic links"),
    "pipe": ({"key": f"/{PREFIX}pipe"}, "is no shared memory object"),
    "negative size": ({"byte_size": -1}, "byte_size of region 'r' is -1"),
    "no bytes": ({"byte_size": 0}, "1 or more"),
    "size is a bool": ({"byte_size": True}, "byte_size of region 'r' is True"),
    "size is a fraction": ({"byte_size": 16.0}, "byte_size of region 'r' is 16.0"),
    "size is text": ({"byte_size": "16"}, "byte_size of region 'r' is '16'"),
    "more than the object": ({"byte_size": SIZE + 1}, f"has {SIZE} bytes"),
    "more than the object behind the offset": ({"offset": 1}, f"has {SIZE} bytes"),
    "negative offset": ({"offset": -1, "byte_size": 1}, "offset of region 'r' is -1"),
    "offset is a bool": ({"offset": False}, "offset of region 'r' is False"),
    "size of 63 bits": ({"byte_size": 2**63 - 1}, f"has {SIZE} bytes"),
    "size of 64 bits": ({"byte_size": 2**64 - 1}, f"has {SIZE} bytes"),
    "sum over 64 bits": ({"offset": 2**64 - 1, "byte_size": 1}, f"has {SIZE} bytes"),
    "size over 64 bits": ({"byte_size": 2**64}, "write a whole number"),
}


@pytest.mark.parametrize("case", BAD_REGISTRATIONS)
def test_bad_registrations(shm: Live, case: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(SIZE))
    (DIRECTORY / f"{PREFIX}folder").mkdir()
    (DIRECTORY / f"{PREFIX}link").symlink_to(DIRECTORY / f"{PREFIX}object")
    (DIRECTORY / f"{PREFIX}way_out").symlink_to(tmp_path / "secret")
    os.mkfifo(DIRECTORY / f"{PREFIX}pipe")
    changes, words = BAD_REGISTRATIONS[case]
    refused(register(shm, **changes), words)
    assert shm.send("GET", f"{REGIONS}/status").json == []


@pytest.mark.parametrize(
    ("body", "words", "status"),
    [
        (b"", "not JSON", 400),
        (b"[]", "JSON object", 400),
        (b"[" * 9999, "not JSON", 400),
        (b" " * 70_000, "70000", 413),
    ],
)
def test_registrations_with_invalid_bodies(shm: Live, body: bytes, words: str, status: int) -> None:
    refused(shm.send("POST", f"{REGIONS}/region/r/register", body), words, status=status)


def test_names_of_regions(shm: Live) -> None:
    assert register(shm, "r").status == 200
    refused(register(shm, "r", byte_size=1), "region 'r' is registered already")
    refused(register(shm, "x" * 256), "256 characters")
    refused(register(shm, "a/b"), status=404)
    refused(register(shm, ""), status=404)
    # A client that died did not unregister. Its object is gone, so that its name is free.
    (DIRECTORY / f"{PREFIX}object").unlink()
    assert register(shm, "r", byte_size=1).status == 200
    assert [row["byte_size"] for row in shm.send("GET", f"{REGIONS}/status").json] == [1]


def test_switched_off(live: Live) -> None:
    """It is off by default, and every route says how to switch it on. For infer see ``test_refusals``."""
    for method, path in [
        ("GET", "/status"),
        ("GET", "/region/r/status"),
        ("POST", "/region/r/register"),
        ("POST", "/region/r/unregister"),
        ("POST", "/unregister"),
    ]:
        body = {"key": "/yolo-assigner-0", "offset": 0, "byte_size": 16}
        refused(live.send(method, REGIONS + path, body if method == "POST" else None), "--shared-memory", status=501)
    with InferenceServerClient(live.url) as client:
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        with pytest.raises(InferenceServerException, match="switched off") as caught:
            client.register_system_shared_memory("r", "/yolo-assigner-0", 16)
    assert caught.value.status() == "501"


REFUSED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda client: client.register_cuda_shared_memory("r", b"handle", 0, 16), "use system shared memory"),
    (lambda client: client.unregister_cuda_shared_memory("r"), "use system shared memory"),
    (lambda client: client.unload_model("loss"), "remove the files from --artifacts"),
    (lambda client: client.get_trace_settings(), "--log-level debug"),
    (lambda client: client.get_trace_settings("loss"), "--log-level debug"),
    (lambda client: client.update_trace_settings("loss", {"trace_rate": "1"}), "--log-level debug"),
    (lambda client: client.update_trace_settings(settings={"trace_rate": "1"}), "--log-level debug"),
    (lambda client: client.get_log_settings(), "another --log-level"),
    (lambda client: client.update_log_settings({"log_info": True}), "another --log-level"),
]


def test_what_is_not_supported(live: Live) -> None:
    with InferenceServerClient(live.url) as client:
        assert client.get_cuda_shared_memory_status() == []
        assert client.get_cuda_shared_memory_status("r") == []
        client.unregister_cuda_shared_memory()
        for call, words in REFUSED:
            with pytest.raises(InferenceServerException, match=words) as caught:
                call(client)
            assert caught.value.status() == "501"
    refused(live.send("GET", "/v2/cudasharedmemory/unregister"), status=405)

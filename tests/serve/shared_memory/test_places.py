"""Places in shared memory that a request must not name."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from tests.serve.conftest import LIMIT, Live
from tests.serve.shared_memory.conftest import PREFIX, SIZE, ask, feat_2, place, refused, register
from yolo_assigner.serve.shared_memory.object import DIRECTORY

BAD_PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown region": (place("nobody", 2144), "no region 'nobody' is registered"),
    "region is a number": (place(7, 2144), "shared_memory_region is 7"),
    "no region": (place(None, 2144), "it has 0"),
    "no region, but bytes": (place(None, 2144) | {"binary_data_size": 2144}, "shared_memory_region is None"),
    "no size": (place("r", None), "has no shared_memory_byte_size"),
    "size is null": (place("r", None) | {"shared_memory_byte_size": None}, "has no shared_memory_byte_size"),
    "too small": (place("r", 2143), "is 2143, but FP32 [2, 67, 2, 2] is 2144 bytes"),
    "too large": (place("r", 2148), "is 2148, but FP32 [2, 67, 2, 2] is 2144 bytes"),
    "negative size": (place("r", -2144), "byte_size is -2144"),
    "size is a fraction": (place("r", 2144.0), "byte_size is 2144.0"),
    "negative offset": (place("r", 2144, -4), "offset is -4"),
    "offset is a bool": (place("r", 2144, True), "offset is True"),
    "offset and size are null": (
        place("r", None) | {"shared_memory_offset": None, "shared_memory_byte_size": None},
        "has no shared_memory_byte_size",
    ),
    "beyond the region": (place("r", 2144, SIZE - 2143), f"region 'r' has {SIZE} bytes"),
    "offset of 64 bits": (place("r", 2144, 2**64 - 1), f"region 'r' has {SIZE} bytes"),
    "bytes as well": (place("r", 2144) | {"binary_data_size": 2144}, "it has 2"),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_bad_places_of_inputs(shm: Live, case: str) -> None:
    parameters, words = BAD_PLACES[case]
    assert register(shm).status == 200
    refused(ask(shm, feat_2(parameters=parameters)), words)
    assert ask(shm, feat_2()).status == 200


def test_bad_places_of_outputs(shm: Live) -> None:
    assert register(shm).status == 200
    marks = b"\xaa" * SIZE
    (DIRECTORY / f"{PREFIX}object").write_bytes(marks)
    cases: list[tuple[dict[str, Any], str]] = [
        (place("r", 31), "output 'image_sums' has 32 bytes, but its shared_memory_byte_size is 31"),
        (place("nobody", 32), "no region 'nobody'"),
        (place("r", 32, SIZE - 31), f"region 'r' has {SIZE} bytes"),
        (place("r", None), "has no shared_memory_byte_size"),
        (place(None, 32), "shared_memory_region is None"),
        (place("r", 32, -1), "shared_memory_offset is -1"),
        (place("r", 2**70), "shared_memory_byte_size is"),
    ]
    for parameters, words in cases:
        outputs = [
            {"name": "loss", "parameters": place("r", 4, 64)},
            {"name": "image_sums", "parameters": parameters},
        ]
        refused(ask(shm, outputs=outputs), words)
    assert (DIRECTORY / f"{PREFIX}object").read_bytes() == marks  # not even the output that had room was written
    refused(ask(shm, outputs=[{"name": "loss", "parameters": place("r", 4) | {"classification": 1}}]), status=501)


def test_values_are_checked_like_all_others(shm: Live) -> None:
    assert register(shm).status == 200
    path = DIRECTORY / f"{PREFIX}object"
    path.write_bytes(bytes([1, 1, 2]) + bytes(SIZE - 3))
    row = {"name": "mask_gt", "shape": [2, 3, 1], "datatype": "BOOL", "parameters": place("r", 6)}
    refused(ask(shm, row), "byte 2 is not a BOOL")
    path.write_bytes(np.array([0, 1, 2, 3, 0, 0]).tobytes() + bytes(SIZE - 48))
    row = {"name": "gt_labels", "shape": [2, 3, 1], "datatype": "INT64", "parameters": place("r", 48)}
    refused(ask(shm, row), "gt_labels[1, 0] is 3, and the number of classes is 3")
    refused(ask(shm, feat_2(datatype="FP64", parameters=place("r", 4288))), "is FP64; convert it to FP32")
    refused(ask(shm, feat_2(datatype="BYTES")), "datatype 'BYTES'")
    refused(ask(shm, feat_2(shape=[2, 67, 4, 1])), "give the maps in the order of strides 8, 16, 32")


def test_the_limit_holds_for_shared_memory(shm: Live) -> None:
    """A large object needs no memory, so that its size does not limit what a client can ask for."""
    (DIRECTORY / f"{PREFIX}object").touch()
    os.truncate(DIRECTORY / f"{PREFIX}object", 2**32)
    assert register(shm, "large", byte_size=2**32).status == 200
    rows: list[dict[str, Any]] = [
        {"name": f"feat_{level}", "shape": [1, 67, 64 >> level, 64 >> level], "datatype": "FP32"} for level in range(3)
    ]
    for row in rows:
        row["parameters"] = place("large", 4 * int(np.prod(row["shape"])))
    refused(ask(shm, *rows), "axis B (images) is 2")  # 1.4 MB were read and looked at
    rows[0] |= {"shape": [4, 67, 64, 64], "parameters": place("large", 4 * 4 * 67 * 64 * 64)}
    refused(ask(shm, *rows), "--max-request-bytes", str(LIMIT), status=413)

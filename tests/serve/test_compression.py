"""Replies that are compressed, when a setting says so and the caller understands it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from tests.serve.conftest import Live, assigner_inputs, binary_rows, json_rows, start, stop
from yolo_assigner.serve.wire.dtypes import wire_name


@pytest.fixture(scope="module")
def compressing(assigner_dir: Path) -> Iterator[Live]:
    server = start("--artifacts", assigner_dir, "--compress-replies", "--no-engine-process")
    yield server
    assert stop(server) == 0


@pytest.mark.parametrize("accepted", ["gzip", "GZIP", "deflate, gzip;q=0.5, br"])
def test_callers_that_accept_gzip_get_it(compressing: Live, live: Live, accepted: str) -> None:
    rows, blob = binary_rows(assigner_inputs())
    plain = live.infer("assigner", {"inputs": rows}, blob)
    packed = compressing.infer("assigner", {"inputs": rows}, blob, **{"Accept-Encoding": accepted})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Content-Length"] == str(len(packed.body))
    assert packed.headers["Vary"] == "Accept-Encoding"
    assert len(packed.body) < len(plain.body)
    assert gzip.decompress(packed.body) == plain.body


@pytest.mark.parametrize("accepted", ["", "identity", "gzip;q=0", "gzip; q=0.0, br", "xgzip"])
def test_others_do_not(compressing: Live, accepted: str) -> None:
    rows, blob = binary_rows(assigner_inputs())
    reply = compressing.infer("assigner", {"inputs": rows}, blob, **{"Accept-Encoding": accepted})
    assert "Content-Encoding" not in reply.headers
    assert reply.status == 200


def test_small_replies_and_servers_without_the_setting_send_plainly(compressing: Live, live: Live) -> None:
    assert "Content-Encoding" not in compressing.send("GET", "/v2", None, {"Accept-Encoding": "gzip"}).headers
    body = {"inputs": json_rows(assigner_inputs())}
    assert "Content-Encoding" not in live.infer("assigner", body, None, **{"Accept-Encoding": "gzip"}).headers


def test_a_client_library_unpacks_it(compressing: Live, live: Live) -> None:
    arrays = assigner_inputs()
    inputs = [triton.InferInput(name, list(array.shape), wire_name(array.dtype)) for name, array in arrays.items()]
    for tensor, array in zip(inputs, arrays.values(), strict=True):
        tensor.set_data_from_numpy(array)
    wanted = [triton.InferRequestedOutput("target_scores", binary_data=True)]
    results = []
    for server in (live, compressing):
        with triton.InferenceServerClient(server.url) as client:
            reply = client.infer("assigner", inputs, outputs=wanted, response_compression_algorithm="gzip")
            results.append(reply.as_numpy("target_scores"))
    np.testing.assert_array_equal(*results)

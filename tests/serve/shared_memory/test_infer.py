"""Tensors through shared memory, compared with the same ones over the socket."""

from __future__ import annotations

import asyncio
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http.aio
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import shared_memory, triton_to_np_dtype

from tests.serve.conftest import Live, assigner_inputs, binary_rows, json_rows, loss_inputs
from tests.serve.shared_memory.conftest import (
    PREFIX,
    SIZE,
    client_memory,
    feat_2,
    over_the_socket,
    place,
    placed_inputs,
    placed_outputs,
    spans,
)
from yolo_assigner.serve.wire.dtypes import wire_name

OUTPUTS = {
    "loss": ["loss", "loss_items", "image_sums", "target_scores", "fg_mask", "target_gt_idx"],
    "assigner": ["target_labels", "target_bboxes", "target_scores", "fg_mask", "target_gt_idx", "target_weights"],
}


@pytest.mark.parametrize("offset", [0, 4096, 12])
@pytest.mark.parametrize("model", OUTPUTS)
def test_results_are_those_of_the_socket(shm: Live, model: str, offset: int) -> None:
    """Compare to the bit, both ways through shared memory, also in regions with an offset in their objects."""
    arrays = loss_inputs(side=256) if model == "loss" else assigner_inputs(side=256)
    expected = over_the_socket(shm, model, arrays, OUTPUTS[model])
    sizes = {name: array.nbytes for name, array in expected.items()}
    _, bytes_in = spans({name: array.nbytes for name, array in arrays.items()})
    assert bytes_in > 2**16  # so that they are read outside the event loop
    offsets, bytes_out = spans(sizes)
    with client_memory(shm, "in", bytes_in, offset) as given, client_memory(shm, "out", bytes_out, offset) as taken:
        inputs, outputs = placed_inputs(given, "in", arrays, offset), placed_outputs("out", sizes)
        with InferenceServerClient(shm.url) as client:
            reply = client.infer(model, inputs, outputs=outputs)
        assert [row["name"] for row in reply.get_response()["outputs"]] == OUTPUTS[model]
        for name, array in expected.items():
            row = reply.get_output(name)
            place = {"region": "out", "byte_size": array.nbytes, "offset": offsets[name]}
            assert row == {
                "name": name,
                "datatype": wire_name(array.dtype),
                "shape": list(array.shape),
                "parameters": {f"shared_memory_{key}": value for key, value in place.items()},
            }
            dtype = triton_to_np_dtype(row["datatype"])
            values = shared_memory.get_contents_as_numpy(taken, dtype, row["shape"], offset + offsets[name])
            np.testing.assert_array_equal(values, array, err_msg=name)
            del values  # a view of the object, which could not be closed otherwise
    assert expected["fg_mask"].any()  # a comparison of nothing but background would prove little


def test_the_asyncio_client(shm: Live) -> None:
    arrays = loss_inputs()
    expected = over_the_socket(shm, "loss", arrays, ["loss_items"])["loss_items"]
    _, size = spans({name: array.nbytes for name, array in arrays.items()})

    async def ask(handle: Any) -> Any:
        async with tritonclient.http.aio.InferenceServerClient(shm.url) as client:
            await client.register_system_shared_memory("aio", f"{PREFIX}in", size)
            status = await client.get_system_shared_memory_status("aio")
            reply = await client.infer("loss", placed_inputs(handle, "aio", arrays))
            await client.unregister_system_shared_memory("aio")
            return status, reply.as_numpy("loss_items"), await client.get_system_shared_memory_status()

    with client_memory(shm, "in", size) as handle:
        status, items, left = asyncio.run(ask(handle))
    assert status == [{"name": "aio", "key": f"{PREFIX}in", "offset": 0, "byte_size": size}]
    assert [region["name"] for region in left] == ["in"]
    np.testing.assert_array_equal(items, expected)


def test_tensors_of_one_request_travel_differently(shm: Live) -> None:
    """One request with inputs in shared memory, as bytes and as JSON, and outputs likewise."""
    arrays = loss_inputs()
    names = ["loss", "loss_items", "image_sums"]
    expected = over_the_socket(shm, "loss", arrays, names)
    with client_memory(shm, "r", SIZE) as handle:
        inputs = placed_inputs(handle, "r", {"feat_0": arrays["feat_0"]})
        for name, array in list(arrays.items())[1:]:
            tensor = InferInput(name, list(array.shape), wire_name(array.dtype))
            inputs.append(tensor.set_data_from_numpy(array, binary_data=name.startswith("feat")))
        outputs = [InferRequestedOutput("loss"), InferRequestedOutput("loss_items", binary_data=False)]
        outputs += placed_outputs("r", {"image_sums": 32})
        with InferenceServerClient(shm.url) as client:
            reply = client.infer("loss", inputs, outputs=outputs)
        for name in ("loss", "loss_items"):
            np.testing.assert_array_equal(reply.as_numpy(name), expected[name])
        # It overwrote the beginning of the input, which had been read by then.
        sums = shared_memory.get_contents_as_numpy(handle, np.float32, [2, 4]).copy()
    np.testing.assert_array_equal(sums, expected["image_sums"])


def test_shared_memory_takes_precedence_over_binary_data(shm: Live) -> None:
    with client_memory(shm, "r", SIZE) as handle:
        parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 4, "binary_data": True}
        document: dict[str, Any] = {
            "inputs": json_rows(loss_inputs()),
            "outputs": [{"name": "loss", "parameters": parameters}],
        }
        document["parameters"] = {"binary_data_output": True}
        reply = shm.infer("loss", document)
        assert "data" not in reply.json["outputs"][0]
        assert reply.headers["Content-Type"] == "application/json"
        loss = shared_memory.get_contents_as_numpy(handle, np.float32, []).copy()
    np.testing.assert_array_equal(loss, over_the_socket(shm, "loss", loss_inputs(), ["loss"])["loss"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_widened(shm: Live, dtype: Any) -> None:
    arrays = {name: array.astype(dtype) if name.startswith("feat") else array for name, array in loss_inputs().items()}
    with client_memory(shm, "r", SIZE) as handle, InferenceServerClient(shm.url) as client:
        reply = client.infer("loss", placed_inputs(handle, "r", arrays))
        expected = over_the_socket(shm, "loss", arrays, ["image_sums"])
        np.testing.assert_array_equal(reply.as_numpy("image_sums"), expected["image_sums"])


def test_tensors_without_values(shm: Live) -> None:
    """They need no bytes, but their place must be inside a region, its end included."""
    arrays = loss_inputs(slots=0)
    with client_memory(shm, "r", SIZE) as handle, InferenceServerClient(shm.url) as client:
        inputs = placed_inputs(handle, "r", arrays)
        expected = over_the_socket(shm, "loss", arrays, ["loss"])["loss"]
        np.testing.assert_array_equal(client.infer("loss", inputs).as_numpy("loss"), expected)
        for offset, status in ((SIZE, 200), (SIZE + 1, 400)):
            inputs[4].set_shared_memory("r", 0, offset)
            document = {"inputs": [tensor._get_tensor() for tensor in inputs]}
            assert shm.infer("loss", document).status == status


def test_two_regions_of_one_object(shm: Live) -> None:
    """Bytes written through one are read through the other, also where they overlap."""
    arrays = {"feat_2": loss_inputs()["feat_2"]}
    rows, blob = binary_rows({name: array for name, array in loss_inputs().items() if name != "feat_2"})
    with client_memory(shm, "r", SIZE) as handle, InferenceServerClient(shm.url) as client:
        client.register_system_shared_memory("again", f"/{PREFIX}r", SIZE - 1024, 1024)
        placed_inputs(handle, "r", arrays, start=1024)
        results = []
        for name, offset in (("r", 1024), ("again", 0)):
            row = feat_2(parameters=place(name, arrays["feat_2"].nbytes, offset))
            results.append(shm.infer("loss", {"inputs": [*rows, row]}, blob))
        assert results[0].status == results[1].status == 200
        assert results[0].body == results[1].body

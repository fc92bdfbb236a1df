"""Configuration, index and statistics through the protocol's client library."""

from __future__ import annotations

import json

import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.serve.conftest import Live


def test_configuration(live: Live) -> None:
    client = InferenceServerClient(live.url)
    config = client.get_model_config("loss_grad")
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("loss_grad", "onnxruntime_onnx", 0)
    assert config["input"][0] == {"name": "feat_0", "data_type": "TYPE_FP32", "dims": [-1, 67, -1, -1]}
    outputs = {row["name"]: row for row in config["output"]}
    assert outputs["fg_mask"] == {"name": "fg_mask", "data_type": "TYPE_BOOL", "dims": [-1, -1]}
    assert outputs["loss"]["dims"] == []
    assert client.get_model_config("loss_grad", "1") == config
    with pytest.raises(InferenceServerException, match="no model 'nobody'"):
        client.get_model_config("nobody")
    client.close()


def test_index(live: Live) -> None:
    client = InferenceServerClient(live.url)
    expected = [
        {"name": name, "version": "1", "state": "READY", "reason": ""} for name in ("assigner", "loss", "loss_grad")
    ]
    assert client.get_model_repository_index() == expected
    assert live.send("POST", "/v2/repository/index").json == expected
    assert live.send("POST", "/v2/repository/index", {"ready": True}).json == expected
    for wrong in ({"ready": 1}, {"ready": "true"}, {"ready": None}, [1]):
        assert live.send("POST", "/v2/repository/index", wrong).status == 400
    assert live.send("POST", "/v2/repository/index", b"{").status == 400
    assert live.send("GET", "/v2/repository/index").status == 405
    client.close()


def test_statistics(live: Live) -> None:
    client = InferenceServerClient(live.url)
    every = client.get_inference_statistics()["model_stats"]
    assert [entry["name"] for entry in every] == ["assigner", "loss", "loss_grad"]
    (entry,) = client.get_inference_statistics("loss")["model_stats"]
    assert entry["inference_stats"].keys() == {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
    }  # fmt: skip
    client.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/models/loss/load"),
        ("POST", "/v2/repository/models/loss/unload"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/models/loss/trace/setting"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/cudasharedmemory/region/r/register"),
        ("POST", "/v2/cudasharedmemory/unregister"),
    ],
)
def test_what_is_not_done_here(live: Live, method: str, path: str) -> None:
    reply = live.send(method, path, json.dumps({}).encode())
    assert reply.status == 501
    assert reply.error
    assert live.send("GET", "/v2/cudasharedmemory/status").body == b"[]"

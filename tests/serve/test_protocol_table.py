"""The protocol's table, row by row: the client library in both its forms, and plain HTTP for what it never sends.

Row 6, inference, is in ``test_protocol`` and ``test_refusals``; what operators see of it in ``test_operation``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from tests.exports import exported
from tests.serve.callers import LIBRARIES, Caller, calling
from tests.serve.conftest import Live, Reply, ended, loss_inputs, start
from yolo_assigner.serve.shared_memory.object import DIRECTORY

MODELS = ("assigner", "loss", "loss_grad")
PREFIX = f"yolo-assigner-table-{os.getpid()}-"
PHASES = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"}


def fails(caller: Caller, status: int, words: str, method: str, *values: Any, **options: Any) -> None:
    """The library raises with the server's own words: it found them under ``error``."""
    with pytest.raises(InferenceServerException) as caught:
        caller(method, *values, **options)
    assert str(caught.value.status()) == str(status)
    assert words in str(caught.value.message())


def without_the_request(reply: Reply) -> dict[str, str]:
    """Headers, but for those that differ from request to request."""
    return {name: value for name, value in reply.headers.items() if name.lower() not in ("date", "x-request-id")}


def test_rows_1_to_3_health(caller: Caller, live: Live) -> None:
    assert caller("is_server_live")
    assert caller("is_server_ready")
    for name, version, ready in (("loss", "", True), ("loss", "1", True), ("loss", "2", False), ("nobody", "", False)):
        assert caller("is_model_ready", name, version) is ready
    assert live.send("GET", "/v2/health/live").json == {"live": True}
    assert live.send("GET", "/v2/health/ready").json == {"ready": True}
    for path in ("/v2/health/live", "/v2/health/ready"):
        get, head = live.send("GET", path), live.send("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert without_the_request(head) == without_the_request(get)
        assert head.headers["Content-Length"] == str(len(get.body))
        assert sorted(live.send("POST", path).headers["Allow"].split(", ")) == ["GET", "HEAD"]
    for path in ("/v2/models/loss/ready", "/v2/models/loss/versions/1/ready"):
        assert live.send("GET", path).json == {"name": "loss", "ready": True}
    for path in ("/v2/models/nobody/ready", "/v2/models/loss/versions/2/ready"):
        reply = live.send("GET", path)
        assert (reply.status, "this server has" in reply.error or "no version" in reply.error) == (404, True)


def test_row_4_server(caller: Caller) -> None:
    server = caller("get_server_metadata")
    assert server.keys() == {"name", "version", "extensions"}
    assert (server["name"], server["extensions"]) == ("yolo-assigner", ["binary_tensor_data"])


def test_row_5_model(caller: Caller) -> None:
    model = caller("get_model_metadata", "loss")
    assert caller("get_model_metadata", "loss", "1") == model
    assert (model["name"], model["versions"], model["platform"]) == ("loss", ["1"], "onnxruntime_onnx")
    rows = {row["name"]: row for row in model["inputs"] + model["outputs"]}
    assert rows["feat_0"] == {"name": "feat_0", "datatype": "FP32", "shape": [-1, 67, -1, -1]}
    assert rows["mask_gt"] == {"name": "mask_gt", "datatype": "BOOL", "shape": [-1, -1, 1]}
    assert rows["loss"] == {"name": "loss", "datatype": "FP32", "shape": [], "parameters": {"default": True}}
    assert not rows["target_scores"]["parameters"]["default"]
    fails(caller, 404, "no model 'nobody'; this server has assigner, loss, loss_grad", "get_model_metadata", "nobody")
    fails(caller, 404, "no version '2', only '1'", "get_model_metadata", "loss", "2")


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # aiohttp's advice to the library
def test_row_6_the_reasons_of_refusals(caller: Caller) -> None:
    def refused(status: int, words: str, model: str = "loss", **options: Any) -> None:
        with pytest.raises(InferenceServerException) as caught:
            caller.ask(model, arrays, **options)
        assert (str(caught.value.status()), words in str(caught.value.message())) == (str(status), True), caught.value

    arrays = loss_inputs()
    refused(404, "no model 'nobody'", "nobody")
    refused(404, "no version '2'", model_version="2")
    refused(400, "no output 'boxes'", outputs=["boxes"])
    refused(400, "'loss' is asked for twice", outputs=["loss", "loss"])
    refused(501, "'br'", headers={"Content-Encoding": "br"})
    refused(400, "Inference-Header-Content-Length", binary_in=False, headers={"Inference-Header-Content-Length": "-1"})
    arrays["gt_labels"][0, 0, 0] = 3
    refused(400, "gt_labels[0, 0] is 3, and the number of classes is 3")
    arrays = loss_inputs(images=16, side=256)
    refused(413, "--max-request-bytes")
    arrays = loss_inputs()
    assert caller.ask("loss", arrays, model_version="1", timeout=60_000_000).as_numpy("loss") > 0


def test_row_7_configuration(caller: Caller) -> None:
    config = caller("get_model_config", "loss_grad")
    assert caller("get_model_config", "loss_grad", "1") == config
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("loss_grad", "onnxruntime_onnx", 0)
    assert config["input"][0] == {"name": "feat_0", "data_type": "TYPE_FP32", "dims": [-1, 67, -1, -1]}
    outputs = {row["name"]: row for row in config["output"]}
    assert outputs["fg_mask"] == {"name": "fg_mask", "data_type": "TYPE_BOOL", "dims": [-1, -1]}
    assert outputs["loss"]["dims"] == []
    fails(caller, 404, "no model 'nobody'", "get_model_config", "nobody")


def test_row_8_statistics(caller: Caller) -> None:
    def count() -> int:
        (entry,) = caller("get_inference_statistics", "loss", "1")["model_stats"]
        assert entry["inference_stats"].keys() == PHASES
        return int(entry["inference_count"])

    before = count()
    caller.ask("loss", loss_inputs())
    assert count() == before + 1
    assert [entry["name"] for entry in caller("get_inference_statistics")["model_stats"]] == list(MODELS)
    fails(caller, 404, "no model 'nobody'", "get_inference_statistics", "nobody")


def test_row_9_index(caller: Caller, live: Live) -> None:
    expected = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in MODELS]
    assert caller("get_model_repository_index") == expected
    assert live.send("POST", "/v2/repository/index").json == expected
    assert live.send("POST", "/v2/repository/index", {"ready": True}).json == expected
    assert live.send("POST", "/v2/repository/index", {"ready": None}).json == expected
    for wrong in ({"ready": 1}, {"ready": "true"}, [1]):
        assert live.send("POST", "/v2/repository/index", wrong).status == 400
    assert live.send("POST", "/v2/repository/index", b"{").status == 400
    assert live.send("GET", "/v2/repository/index").status == 405


def test_models_are_loaded_again(caller: Caller) -> None:
    """What changes is tested in ``test_reload.py``."""
    caller("load_model", "loss")
    assert caller("is_model_ready", "loss")
    fails(caller, 404, "there is no nobody.json", "load_model", "nobody")


def test_row_10_while_it_is_switched_off(caller: Caller) -> None:
    for method, *values in (
        ("get_system_shared_memory_status",),
        ("register_system_shared_memory", "r", "/key", 4),
        ("unregister_system_shared_memory",),
    ):
        fails(caller, 501, "start the server with --shared-memory", method, *values)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("unload_model", ["loss"]),
        ("get_trace_settings", []),
        ("get_trace_settings", ["loss"]),
        ("update_trace_settings", ["loss", {"trace_level": ["OFF"]}]),
        ("get_log_settings", []),
        ("update_log_settings", [{"log_info": False}]),
        ("register_cuda_shared_memory", ["r", b"handle", 0, 4]),
        ("unregister_cuda_shared_memory", ["r"]),
    ],
)
def test_row_11_what_is_not_done_here(caller: Caller, method: str, values: list[Any]) -> None:
    fails(caller, 501, "; ", method, *values)  # what is not done, and what to do instead
    assert caller("get_cuda_shared_memory_status") == []
    assert caller("get_cuda_shared_memory_status", "r") == []
    caller("unregister_cuda_shared_memory")


@pytest.fixture(scope="module")
def shared() -> Iterator[Live]:
    """With shared memory; the last test has begun to stop it."""
    server = start("--artifacts", exported("loss", "sparse"), "--shared-memory", PREFIX, "--lame-duck-seconds", "60")
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert ended(server) == 128 + signal.SIGTERM


@pytest.fixture(params=LIBRARIES)
def neighbour(request: pytest.FixtureRequest, shared: Live) -> Iterator[Caller]:
    with calling(request.param, shared.url) as client:
        yield client


@pytest.mark.skipif(not DIRECTORY.is_dir(), reason="shared memory cannot be read like files here")
def test_row_10_regions(neighbour: Caller) -> None:
    """What lies in them is read and written in ``tests/serve/shared_memory``."""
    path = DIRECTORY / f"{PREFIX}object"
    path.write_bytes(bytes(64))
    region = {"name": "r", "key": f"/{path.name}", "offset": 16, "byte_size": 48}
    register = ("register_system_shared_memory", "r", region["key"])
    try:
        assert neighbour("get_server_metadata")["extensions"] == ["binary_tensor_data", "system_shared_memory"]
        neighbour(*register, 48, 16)
        assert neighbour("get_system_shared_memory_status") == [region]
        assert neighbour("get_system_shared_memory_status", "r") == [region]
        fails(neighbour, 400, "registered already", *register, 48, 16)
        neighbour("unregister_system_shared_memory", "r")
        fails(neighbour, 404, "no region 'r'", "get_system_shared_memory_status", "r")
        fails(neighbour, 400, "has 64 bytes", *register, 49, 16)
        fails(neighbour, 400, "1 or more", *register, 0)
        fails(neighbour, 400, "whose keys begin with", "register_system_shared_memory", "r", "/elsewhere", 4)
        neighbour(*register, 64)
        neighbour("unregister_system_shared_memory")
        assert neighbour("get_system_shared_memory_status") == []
    finally:
        path.unlink()


def test_row_2_while_it_stops(shared: Live) -> None:
    """Alive and still computing, but not ready; and again on the connection that it closed after the last reply."""
    shared.process.send_signal(signal.SIGTERM)
    for library in LIBRARIES:
        with calling(library, shared.url) as client:
            while client("is_server_ready"):
                pass
            assert client("is_server_live")
            for _ in range(3):
                assert client.ask("loss", loss_inputs()).as_numpy("loss") > 0

"""``yolo-assigner serve`` as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.exports import exported
from tests.serve.conftest import ROOT, Live, assigner_inputs, binary_rows, loss_inputs, start, stop
from yolo_assigner.export.contract import file_hash


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    command = [sys.executable, "-m", "yolo_assigner", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def refuses(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture
def copy(artifacts_dir: Path, tmp_path: Path) -> Path:
    """The exported loss, to be damaged."""
    for name in ("loss.onnx", "loss.json"):
        (tmp_path / name).write_bytes((artifacts_dir / name).read_bytes())
    return tmp_path


def test_serves_and_stops(assigner_dir: Path) -> None:
    live = start("--artifacts", assigner_dir)
    rows, blob = binary_rows(assigner_inputs())
    assert live.infer("assigner", {"inputs": rows}, blob).status == 200
    with socket.create_connection((live.host, live.port)):  # a caller who keeps a connection does not hold it up
        assert stop(live) == 0


def test_stops_at_once_while_loading(assigner_dir: Path) -> None:
    command = [sys.executable, "-m", "yolo_assigner", "serve", "--port", "0", "--artifacts", str(assigner_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving on")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0


def test_a_folder_without_models(tmp_path: Path) -> None:
    refuses(run("--artifacts", tmp_path), "no contract", "yolo-assigner export onnx")


def test_a_damaged_file(copy: Path) -> None:
    (copy / "loss.onnx").write_bytes(b"\0" * 100)
    refuses(run("--artifacts", copy), "is not the file that loss.json describes")


def test_a_missing_file(copy: Path) -> None:
    (copy / "loss.onnx").unlink()
    refuses(run("--artifacts", copy), "loss.onnx, which is not beside it")


def test_a_contract_that_is_none(copy: Path) -> None:
    (copy / "loss.json").write_text("{")
    refuses(run("--artifacts", copy), "cannot be read as a contract")


def test_a_file_that_is_no_graph(copy: Path) -> None:
    """Its hash is right, so only the engine can tell."""
    (copy / "loss.onnx").write_bytes(b"\xff" * 100)
    contract = json.loads((copy / "loss.json").read_text())
    (copy / "loss.json").write_text(json.dumps(contract | {"sha256": file_hash(copy / "loss.onnx")}))
    refuses(run("--artifacts", copy, "--port", "0"), "a model cannot be loaded")


def test_strides_that_are_no_numbers_of_pixels(copy: Path) -> None:
    contract = json.loads((copy / "loss.json").read_text())
    contract["hyperparameters"]["strides"] = [8.5, 16, 32]
    (copy / "loss.json").write_text(json.dumps(contract))
    refuses(run("--artifacts", copy), "strides [8.5, 16, 32]", "whole ones")


def test_an_address_in_use(assigner_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refuses(run("--artifacts", assigner_dir, "--port", str(port)), f"cannot listen on 127.0.0.1 port {port}")
    refuses(run("--artifacts", assigner_dir, "--port", "70000"), "--port", "65535, not '70000'")
    refuses(run("--artifacts", assigner_dir, "--threads", "-1"), "--threads", "not '-1'")


def test_an_engine_that_was_asked_for_and_is_not_there(assigner_dir: Path) -> None:
    """Refused before the address is taken, in one line."""
    done = run("--artifacts", assigner_dir, "--engine", "tensorrt")
    refuses(done, "serve: no engine of model 'assigner' for tensorrt in", "yolo-assigner export tensorrt")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    refuses(run("--artifacts", assigner_dir, "--engine", "tensorrt", "--device", "cpu"), "choose --device cuda")
    refuses(run("--artifacts", assigner_dir, "--device", "gpu"), "device 'gpu' is unknown; write cpu, cuda or cuda:N")


def test_a_device_that_was_asked_for_and_is_not_there(assigner_dir: Path) -> None:
    """ModelInfo only once models are loaded: there is no fallback to the CPU."""
    done = run("--artifacts", assigner_dir, "--port", "0", "--engine", "onnxruntime", "--device", "cuda:99")
    refuses(done, "serve: a model cannot be loaded: ", "ExecutionProvider")


def test_torch_serves_when_it_is_asked_for(live: Live) -> None:
    other = start("--artifacts", exported("loss_grad", "sparse"), "--engine", "torch", "--device", "cpu")
    assert other.send("GET", "/v2/models/loss_grad").json["platform"] == "pytorch"
    rows, blob = binary_rows(loss_inputs())
    document = {"inputs": rows, "outputs": [{"name": "loss"}, {"name": "grad_feat_0"}]}
    ours, theirs = (server.infer("loss_grad", document, blob).json["outputs"] for server in (other, live))
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine["data"], reference["data"], rtol=1e-5, atol=1e-7, err_msg=mine["name"])
    assert stop(other) == 0


def test_no_torch_and_nothing_of_the_training_side(assigner_dir: Path) -> None:
    """Also once models are loaded and have been run, and in the client."""
    code = """
import asyncio, sys
from pathlib import Path
import yolo_assigner.serve.__main__, yolo_assigner.serve.cli, yolo_assigner.serve.client
from yolo_assigner.serve.inference.loading import open_artifacts
from yolo_assigner.serve.inference.runners.choice import RunnerOptions
registry = open_artifacts(Path(sys.argv[1]), RunnerOptions(threads=1))
asyncio.run(registry.load())
assert registry.ready
registry.close()
shared = ["checks", "option_checks", *(f"explain{name}" for name in ("", ".document", ".listing", ".reasons"))]
checks = {"yolo_loss", *(f"yolo_loss.{name}" for name in shared)}  # shared with training, and free of torch
training = {"torch", "yolo_loss", "models", "examples"}
print(*sorted(name for name in sys.modules if name.split(".")[0] in training and name not in checks))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(assigner_dir)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("client", {"fastapi", "uvicorn", "onnx", "onnxruntime", "orjson"}),
        ("process.worker", {"fastapi", "uvicorn", "pydantic", "pydantic_settings"}),  # it is to start again soon
    ],
)
def test_neither_the_client_nor_the_engine_process_needs_the_servers_packages(module: str, others: set[str]) -> None:
    code = f"import sys, yolo_assigner.serve.{module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not others.intersection(done.stdout.split())

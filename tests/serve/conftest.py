"""A real server process, and plain HTTP to talk to it."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.control_group import memory_group
from tests.serve.callers import LIBRARIES, Caller, calling
from tests.served import POLL_SECONDS
from yolo_assigner.export.contract import find_contracts
from yolo_assigner.serve.wire.dtypes import Array, wire_name

ROOT = Path(__file__).parents[2]
LIMIT = 4 * 2**20  # bytes of a body
GROUP_BYTES = 600 * 2**20


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, strictly: Python's reader would let NaN pass."""
        return json.loads(self.body, parse_constant=_no_constant)

    @property
    def error(self) -> str:
        """The reason of a refusal, in the only form the client library understands."""
        assert list(self.json) == ["error"]
        assert "Traceback" not in self.body.decode()
        return str(self.json["error"])


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


class Live(NamedTuple):
    """A running server."""

    host: str
    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """For client libraries."""
        return f"{self.host}:{self.port}"

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """One request on a connection of its own; anything but bytes is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def infer(self, model: str, document: Any, blob: bytes | None = None, **headers: str) -> Reply:
        """An infer request; with ``blob`` the header says where the JSON ends."""
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        sent = dict(headers)
        if blob is not None:
            sent.setdefault("Inference-Header-Content-Length", str(len(text)))
        return self.send("POST", f"/v2/models/{model}/infer", text + (blob or b""), sent)


def start(*arguments: str | Path, through: Sequence[str] = ()) -> Live:
    """Start ``yolo-assigner serve``, by another program if one is given, on a free port and wait until it is ready."""
    command = [
        *through,
        sys.executable,
        "-m",
        "yolo_assigner",
        "serve",
        "--port",
        "0",
        "--threads",
        "1",
        *map(str, arguments),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving on http://"), line
    host, port = line.removeprefix("serving on http://").strip().rsplit(":", 1)
    live = Live(host, int(port), process)
    deadline = time.monotonic() + 240
    while live.send("GET", "/v2/health/ready").status != 200:
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)
    return live


def worker_of(live: Live) -> int:
    """Process identifier of a server's engines."""
    (child,) = Path(f"/proc/{live.process.pid}/task/{live.process.pid}/children").read_text().split()
    return int(child)


def stop(live: Live) -> int:
    """Ask a server to end, as an orchestrator does, and return its exit code."""
    live.process.send_signal(signal.SIGTERM)
    return ended(live)


def ended(live: Live) -> int:
    """Wait for the end of a server that was told to stop, and return its exit code."""
    code = live.process.wait(timeout=120)
    assert live.process.stdout is not None
    live.process.stdout.close()
    return code


@pytest.fixture(scope="session")
def live(artifacts_dir: Path) -> Iterator[Live]:
    """One server for the whole run: whatever a test sends, the next one must still be served."""
    server = start("--artifacts", artifacts_dir, "--max-request-bytes", str(LIMIT))
    yield server
    assert stop(server) == 0


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 600 MiB of memory without swap, empty and gone at the end."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(memory_group(GROUP_BYTES))
        except OSError as error:
            pytest.skip(str(error))
        yield made


@pytest.fixture(params=LIBRARIES)
def caller(request: pytest.FixtureRequest, live: Live) -> Iterator[Caller]:
    """The protocol's client library, once as it blocks and once as it is awaited."""
    with calling(request.param, live.url) as client:
        yield client


def copy_as(folder: Path, into: Path, *names: str) -> None:
    """Copy the only model of a folder into another under several names."""
    ((path, contract),) = find_contracts(folder)
    for name in names:
        shutil.copy(path, into / f"{name}.onnx")
        dataclasses.replace(contract, name=name, file=f"{name}.onnx").save(into / f"{name}.json")


def loss_inputs(images: int = 2, slots: int = 3, side: int = 64, seed: int = 0) -> dict[str, Array]:
    """Random maps of the served loss model (3 classes, 16 bins) and random boxes."""
    random = np.random.default_rng(seed)
    maps = {
        f"feat_{level}": random.standard_normal((images, 67, side // stride, side // stride), np.float32)
        for level, stride in enumerate((8, 16, 32))
    }
    return maps | _boxes(random, images, slots, side)


def assigner_inputs(
    images: int = 2, slots: int = 3, side: int = 64, classes: int = 5, seed: int = 0
) -> dict[str, Array]:
    """Random decoded predictions and boxes."""
    random = np.random.default_rng(seed)
    anchors = sum((side // stride) ** 2 for stride in (8, 16, 32))
    corners = random.uniform(0, side, (2, images, anchors, 2)).astype(np.float32)
    return {
        "pd_scores": random.uniform(0, 1, (images, anchors, classes)).astype(np.float32),
        "pd_bboxes": np.concatenate((corners.min(axis=0), corners.max(axis=0)), axis=-1),
        "anc_points": random.uniform(0, side, (anchors, 2)).astype(np.float32),
    } | _boxes(random, images, slots, side)


def graph_inputs(
    images: int = 2, slots: int = 3, side: int = 64, classes: int = 5, seed: int = 0, *, own_points: bool = False
) -> dict[str, Array]:
    """Those with the axes that an exported model's graph has: points of all images (1, A, 2), or (B, A, 2)."""
    arrays = assigner_inputs(images, slots, side, classes, seed)
    shift = np.arange(images if own_points else 1, dtype=np.float32)[:, None, None]
    return arrays | {"anc_points": arrays["anc_points"] + 3 * shift}


def _boxes(random: np.random.Generator, images: int, slots: int, side: int) -> dict[str, Array]:
    low = random.uniform(0, side / 2, (images, slots, 2))
    boxes = np.concatenate((low, low + random.uniform(8, side / 2, low.shape)), axis=-1)
    return {
        "gt_labels": random.integers(0, 3, (images, slots, 1)),
        "gt_bboxes": boxes.astype(np.float32),
        "mask_gt": np.ones((images, slots, 1), np.bool_),
    }


def json_rows(arrays: dict[str, Array]) -> list[dict[str, Any]]:
    """Inputs written as JSON."""
    return [
        {"name": name, "shape": list(array.shape), "datatype": wire_name(array.dtype), "data": array.ravel().tolist()}
        for name, array in arrays.items()
    ]


def binary_rows(arrays: dict[str, Array]) -> tuple[list[dict[str, Any]], bytes]:
    """Inputs announced in JSON, and the bytes that follow it."""
    rows = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": wire_name(array.dtype),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    return rows, b"".join(array.tobytes() for array in arrays.values())

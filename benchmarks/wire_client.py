"""A client that costs next to nothing, and the two servers that ``benchmarks.transport`` compares."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn

from benchmarks.process_tree import peak_resident, resident
from benchmarks.served import wait_until_ready
from yolo_assigner.export.contract import Contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.specs import input_specs, output_specs
from yolo_assigner.serve.app import create_app
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.loading import LoadedModels
from yolo_assigner.serve.inference.local import LocalService, Setup, regions_of
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.runners.choice import RunnerOptions
from yolo_assigner.serve.process.supervisor import RemoteService
from yolo_assigner.serve.process.worker import main
from yolo_assigner.serve.settings import Settings
from yolo_assigner.serve.system import keep_large_blocks
from yolo_assigner.serve.wire.dtypes import Array, wire_name

NUMBERS = Hyperparameters(num_classes=80)
LENGTH = b"content-length: "
WORKER = (sys.executable, "-m", "benchmarks.wire_client", "worker")


class Payload(NamedTuple):
    """A request as it goes out."""

    head: bytes
    body: list[memoryview]

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(part.nbytes for part in self.body)


class Connection:
    """One connection that stays open. Use from one thread.

    Args:
        port: On loopback.
        pid: Of the server.
    """

    def __init__(self, port: int, pid: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pid = pid

    def send(self, payload: Payload) -> bytes:
        """Send a request and wait for the whole reply.

        Raises:
            RuntimeError: The reply is no success.
        """
        self._socket.sendall(payload.head)
        for part in payload.body:
            self._socket.sendall(part)
        reply = bytearray()
        while (end := reply.find(b"\r\n\r\n")) < 0:
            reply += self._receive()
        head = bytes(reply[:end]).lower()
        length = int(head[head.index(LENGTH) + len(LENGTH) :].split(b"\r\n", 1)[0])
        while len(reply) < end + 4 + length:
            reply += self._receive()
        if b" 200 " not in head[:16]:
            raise RuntimeError(bytes(reply).decode())
        return bytes(reply[end + 4 :])

    def _receive(self) -> bytes:
        part = self._socket.recv(2**18)
        if not part:
            raise RuntimeError("the server closed the connection")
        return part

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def resident(self) -> int:
        """Bytes of the server's memory, in all its processes."""
        return resident(self._pid)

    def peak(self, payload: Payload) -> int:
        """The most that it is while a request is answered."""
        return peak_resident(self._pid, lambda: self.send(payload))


def contract() -> Contract:
    """Of the loss that nobody computes."""
    specs = input_specs("loss", NUMBERS), output_specs("loss", NUMBERS)
    return Contract("loss", "loss", "none", "", "sparse", NUMBERS.as_contract(), *specs, {})


def request_arrays(images: int, side: int = 640) -> dict[str, Array]:
    """Inputs of the loss for square images with 30 slots."""
    sizes: dict[int | str, int] = {"B": images, "M": 30}
    for level, stride in enumerate(NUMBERS.strides):
        sizes[f"H{level}"] = sizes[f"W{level}"] = int(side // stride)
    generator = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for spec in contract().inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
        numbers = generator.standard_normal(shape) if spec.dtype == "float32" else np.ones(shape)
        arrays[spec.name] = numbers.astype(spec.dtype)
    return arrays


def binary_payload(images: int, side: int = 640) -> Payload:
    """The request with its tensors as bytes."""
    arrays = request_arrays(images, side)
    rows = [_row(name, array) | {"parameters": {"binary_data_size": array.nbytes}} for name, array in arrays.items()]
    return _payload(rows, [array.data.cast("B") for array in arrays.values()])


def json_payload(images: int) -> Payload:
    """The request with its tensors as JSON."""
    return _payload(
        [_row(name, array) | {"data": array.ravel().tolist()} for name, array in request_arrays(images).items()]
    )


def _row(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "datatype": wire_name(array.dtype), "shape": list(array.shape)}


def _payload(rows: list[dict[str, Any]], blobs: Sequence[memoryview] = ()) -> Payload:
    text = json.dumps(
        {"inputs": rows, "outputs": [{"name": "loss", "parameters": {"binary_data": bool(blobs)}}]}
    ).encode()
    length = len(text) + sum(blob.nbytes for blob in blobs)
    said = f"inference-header-content-length: {len(text)}\r\n" if blobs else ""
    head = f"POST /v2/models/loss/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{said}\r\n"
    return Payload(head.encode(), [memoryview(text), *blobs])


@contextmanager
def running(kind: str, module: str = "benchmarks.wire_client") -> Iterator[Connection]:
    """Start a server in a process of its own and connect.

    Args:
        kind: ``bare`` or ``infer``, or a word that another module takes.
        module: What is started with that word and prints its port.
    """
    with subprocess.Popen([sys.executable, "-m", module, kind], stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline()) if process.stdout else 0
            if kind != "bare":
                wait_until_ready(port, process)
            yield Connection(port, process.pid)
        finally:
            process.terminate()


class Nothing:
    """A runner that computes nothing."""

    platform = "none"
    description = "nothing"
    sizes: Mapping[str, int] = {}

    def load(self) -> None:
        """Nothing to do."""

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:  # noqa: ARG002
        """Zeros."""
        return {name: np.zeros((), np.float32) for name in outputs}

    def close(self) -> None:
        """Nothing to do."""


async def count_bytes(scope: Any, receive: Any, send: Any) -> None:
    """The bare application: how long the body is."""
    if scope["type"] != "http":
        return
    count, more = 0, True
    while more:
        message = await receive()
        count += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(count).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def setup(prefix: str | None = None) -> Setup:
    """Of a service that computes nothing; there are no artifacts."""
    most = Settings.model_fields["max_request_bytes"].default
    return Setup(Path(), RunnerOptions(), BatchLimits(), 2**32, 0.0, prefix, False, most, most, "warning", "text")


def serve(app: Any, *, lifespan: bool = True) -> None:
    """Serve an application on a free port, which is printed."""
    keep_large_blocks()
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none", lifespan="on" if lifespan else "off")
    uvicorn.Server(config).run(sockets=[listener])


def nothing_service(setup: Setup) -> LocalService:
    """The service in the engines' process."""
    return LocalService(LoadedModels([Model(contract(), Nothing())]), regions_of(setup), keep_bytes=setup.keep_bytes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("bare", "infer", "worker"))
    parser.add_argument("descriptor", type=int, nargs="?")
    options = parser.parse_args()
    if options.kind == "worker":
        main(options.descriptor, nothing_service)
    elif options.kind == "bare":
        serve(count_bytes, lifespan=False)
    else:
        serve(create_app(RemoteService([contract()], setup(), WORKER)))

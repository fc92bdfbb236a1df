"""The servers that ``benchmarks.transport`` compares, and the requests for them; nothing is computed.

``bare`` is an ASGI application that counts bytes, ``infer`` this project's server, and ``shared`` the same with shared
memory. The engine process of the last two is this module too, as ``worker``.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn

from benchmarks.common.client import Payload, connected, infer_head
from tests.serve.hostile.wire import Wire
from tests.served import wait_until_ready
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

HYPERPARAMETERS = Hyperparameters(num_classes=80)
PREFIX = "yolo-assigner-benchmark-"  # of the names of shared memory
MODULE = (sys.executable, "-m", "benchmarks.transport_server")


def contract() -> Contract:
    """Contract of the loss model that computes nothing."""
    specs = input_specs("loss", HYPERPARAMETERS), output_specs("loss", HYPERPARAMETERS)
    return Contract("loss", "loss", "none", "", "sparse", HYPERPARAMETERS.as_contract(), *specs, {})


def request_arrays(images: int, side: int = 640) -> dict[str, Array]:
    """Inputs of the loss for square images with 30 slots.

    Args:
        images: B.
        side: Height and width in pixels.
    """
    sizes: dict[int | str, int] = {"B": images, "M": 30}
    for level, stride in enumerate(HYPERPARAMETERS.strides):
        sizes[f"H{level}"] = sizes[f"W{level}"] = int(side // stride)
    generator = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for spec in contract().inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
        values = generator.standard_normal(shape) if spec.dtype == "float32" else np.ones(shape)
        arrays[spec.name] = values.astype(spec.dtype)
    return arrays


def described(name: str, array: Array, **more: Any) -> dict[str, Any]:
    """Description of an input in a request's JSON."""
    return {"name": name, "datatype": wire_name(array.dtype), "shape": list(array.shape), **more}


def binary_payload(images: int, side: int = 640) -> Payload:
    """The request with its tensors as bytes. Arguments as for :func:`request_arrays`."""
    arrays = request_arrays(images, side)
    rows = [described(name, a, parameters={"binary_data_size": a.nbytes}) for name, a in arrays.items()]
    return infer_payload(rows, [array.data.cast("B") for array in arrays.values()])


def text_payload(images: int) -> Payload:
    """The request with its tensors as JSON."""
    arrays = request_arrays(images)
    return infer_payload([described(name, array, data=array.ravel().tolist()) for name, array in arrays.items()])


def infer_payload(rows: Sequence[Mapping[str, Any]], blobs: Sequence[memoryview] = ()) -> Payload:
    """An infer request that asks for the loss.

    Args:
        rows: Descriptions of the inputs.
        blobs: Bytes of the inputs that travel behind the JSON.
    """
    asked = [{"name": "loss", "parameters": {"binary_data": bool(blobs)}}]
    text = json.dumps({"inputs": rows, "outputs": asked}).encode()
    more = f"inference-header-content-length: {len(text)}\r\n" if blobs else ""
    return Payload(infer_head("loss", len(text) + sum(map(len, blobs)), more), (text, *blobs))


class Running(NamedTuple):
    """A server in a process of its own, and a connection to it."""

    wire: Wire
    pid: int


@contextmanager
def running(kind: str) -> Iterator[Running]:
    """Start a server in a process of its own and connect to it.

    Args:
        kind: ``bare``, ``infer`` or ``shared``.
    """
    with subprocess.Popen([*MODULE, kind], stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline()) if process.stdout else 0
            if kind != "bare":
                wait_until_ready(port, process)
            with closing(connected(port)) as wire:
                yield Running(wire, process.pid)
        finally:
            process.terminate()


class NoRunner:
    """A runner that answers with zeros."""

    platform = "none"
    description = "nothing"
    sizes: Mapping[str, int] = {}

    def load(self) -> None:
        """Load nothing."""

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:  # noqa: ARG002
        """Return a scalar zero for each output."""
        return {name: np.zeros((), np.float32) for name in outputs}

    def close(self) -> None:
        """Release nothing."""


async def count_bytes(scope: Any, receive: Any, send: Any) -> None:
    """The bare application: answer with the length of the body."""
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
    """Options of a service without artifacts; the prefix of names turns shared memory on."""
    most: int = Settings.model_fields["max_request_bytes"].default
    return Setup(Path(), RunnerOptions(), BatchLimits(), 2**32, 0.0, prefix, most, most, "warning", "text")


def serve(app: Any, *, lifespan: bool = True) -> None:
    """Serve an application on a free port, and print the port."""
    keep_large_blocks()
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none", lifespan="on" if lifespan else "off")
    uvicorn.Server(config).run(sockets=[listener])


def service(setup: Setup) -> LocalService:
    """The service in the engine process."""
    return LocalService(LoadedModels([Model(contract(), NoRunner())]), regions_of(setup), keep_bytes=setup.keep_bytes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("bare", "infer", "shared", "worker"))
    parser.add_argument("descriptor", type=int, nargs="?")
    options = parser.parse_args()
    if options.kind == "worker":
        main(options.descriptor, service)
    elif options.kind == "bare":
        serve(count_bytes, lifespan=False)
    else:
        prefix = PREFIX if options.kind == "shared" else None
        serve(create_app(RemoteService([contract()], setup(prefix), (*MODULE, "worker"))))

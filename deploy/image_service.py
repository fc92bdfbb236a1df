"""The service of an image in a container: started, asked, stopped."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from deploy.container import Container, Image
from examples.dataset import Sample
from yolo_assigner.serve.client import AssignerClient

READY_SECONDS = 120
STOP_SECONDS = 40
PAUSE = 0.5


class Drained(NamedTuple):
    """What became of a request under way, and of the service.

    Attributes:
        status: Of the reply.
        loss: In the reply; None when there is none.
        exit_code: Of the container.
    """

    status: int
    loss: float | None
    exit_code: int


class Service:
    """The image's service in a container of its own, ready when entered.

    Attributes:
        port: Where it listens, on loopback only.
        metrics_port: Where its metrics are.
        ready_seconds: From the container's start until it was ready.
    """

    def __init__(self, image: Image, folder: Path, volumes: Mapping[str, Path]) -> None:
        self.port, self.metrics_port = _free_port(), _free_port()
        ports = {"PORT": self.port, "METRICS_PORT": self.metrics_port}
        addresses = {"HOST": "127.0.0.1", "METRICS_HOST": "127.0.0.1", **ports}
        environment = {f"YOLO_ASSIGNER_{name}": str(value) for name, value in addresses.items()}
        self.started = time.perf_counter()
        self.container = Container(image, folder, environment=environment, volumes=volumes, network=True)
        self.ready_seconds = 0.0

    def __enter__(self) -> Self:
        while not self.answers(self.port, "/v2/health/ready"):
            if not self.container.running or time.perf_counter() - self.started > READY_SECONDS:
                self.container.end()
                raise RuntimeError(f"the service did not become ready; it said {self.container.log.read_text()}")
            time.sleep(0.005)
        self.ready_seconds = time.perf_counter() - self.started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.end()

    def answers(self, port: int, path: str) -> bool:
        """Whether a path is answered with 200."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    def ask(self, sample: Sample) -> float:
        """The loss of the sample."""
        with AssignerClient(f"127.0.0.1:{self.port}") as client:
            return float(client.loss(sample.feats, sample.batch).loss)

    def drain(self, sample: Sample) -> Drained:
        """Send SIGTERM while a request is half sent, and then its other half."""
        body = json.dumps(_typed(sample)).encode()
        head = f"POST /v1/loss HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        half = len(body) // 2
        with socket.create_connection(("127.0.0.1", self.port), timeout=STOP_SECONDS) as connection:
            connection.sendall(head.encode() + body[:half])
            time.sleep(PAUSE)
            self.container.signal("TERM")
            time.sleep(PAUSE)
            connection.sendall(body[half:])
            response = http.client.HTTPResponse(connection)
            response.begin()
            loss = json.load(response).get("loss")
        return Drained(response.status, loss, self.container.wait(STOP_SECONDS))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _typed(sample: Sample) -> dict[str, Any]:
    feats = [
        {"shape": feat.shape, "dtype": "float32", "base64": base64.b64encode(feat.astype("<f4").tobytes()).decode()}
        for feat in sample.feats
    ]
    return {"feats": feats, "batch": {name: np.asarray(values).tolist() for name, values in sample.batch.items()}}

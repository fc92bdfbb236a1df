"""What client and server say of their versions, and what happens when they cannot work together."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

from tests.serve.conftest import Live, binary_rows, loss_inputs
from tests.serve.test_client import BATCH, maps
from yolo_assigner.serve.client import AssignerClient, ServerError
from yolo_assigner.serve.client import client as client_module
from yolo_assigner.serve.versions import CLIENT_HEADER, OURS, PROTOCOL, SERVER_HEADER
from yolo_loss import __version__

OTHER = f"9.9.9; protocol={PROTOCOL + 1}"
MISMATCH = (
    f"yolo-assigner 9.9.9 with protocol {PROTOCOL + 1}",
    f"yolo-assigner {__version__} with",
    "install the same",
)


def infer(live: Live, **headers: str) -> tuple[int, bytes]:
    rows, blob = binary_rows(loss_inputs(images=1))
    reply = live.infer("loss", {"inputs": rows}, blob, **headers)
    return reply.status, reply.body


def test_the_server_says_what_it_is(live: Live) -> None:
    """In every reply, also to what is no request."""
    for path in ("/v2", "/v2/health/live", "/nothing", "/docs"):
        assert live.send("GET", path).headers[SERVER_HEADER] == OURS
    connection = http.client.HTTPConnection(live.host, live.port, timeout=120)
    connection.putrequest("GET", "/v2", skip_host=True)
    connection.endheaders()
    reply = connection.getresponse()
    assert (reply.status, reply.headers[SERVER_HEADER]) == (400, OURS)
    connection.close()


@pytest.mark.parametrize("said", [None, OURS, f"9.9.9; protocol={PROTOCOL}", f"0.1.dev0+local; protocol={PROTOCOL}"])
def test_who_speaks_the_same_protocol_or_says_nothing_is_served(live: Live, said: str | None) -> None:
    assert infer(live, **({} if said is None else {CLIENT_HEADER: said}))[0] == 200


def test_the_server_refuses_a_client_of_another_protocol(live: Live) -> None:
    rows, blob = binary_rows(loss_inputs(images=1))
    reply = live.infer("loss", {"inputs": rows}, blob, **{CLIENT_HEADER: OTHER})
    assert reply.status == 400
    for words in (*MISMATCH, "the client is", "this server is"):
        assert words in reply.error
    for said in ("", "9.9.9", f"{OURS}, {OURS}", "9.9.9; protocol=one", f"{'9' * 65}; protocol=1"):
        reply = live.infer("loss", {"inputs": rows}, blob, **{CLIENT_HEADER: said})
        assert (reply.status, CLIENT_HEADER in reply.error, repr(OURS) in reply.error) == (400, True, True)


@contextmanager
def server(*said: str) -> Iterator[str]:
    """One that says something of itself and answers with JSON; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.headers[CLIENT_HEADER])
            self.send_response(200)
            for value in said:
                self.send_header(SERVER_HEADER, value)
            body = b'{"model_name": "loss", "outputs": []}'
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()
    assert asked
    assert set(asked) == {OURS}


def test_the_client_refuses_a_server_of_another_protocol() -> None:
    with server(OTHER) as address, AssignerClient(address) as client:
        for _ in range(2):  # the connection is given back
            with pytest.raises(ServerError, match="the server is yolo-assigner") as caught:
                client.loss(maps(), BATCH)
            for words in (*MISMATCH, "this client is"):
                assert words in str(caught.value)
        with pytest.raises(ServerError, match="the server is yolo-assigner"):
            client.criterion()([torch.from_numpy(feat).requires_grad_() for feat in maps()], BATCH)
    said_twice = pytest.raises(ServerError, match=SERVER_HEADER)
    with server(OURS, OURS) as address, AssignerClient(address) as client, said_twice:
        client.loss(maps(), BATCH)


def test_the_client_takes_a_server_that_says_nothing() -> None:
    with server() as address, AssignerClient(address) as client:
        assert client.infer("loss", {"x": np.zeros(1, np.float32)}, []) == {}


def test_the_client_shows_the_servers_refusal(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of another version would, whichever side notices."""
    monkeypatch.setattr(client_module, "OURS", OTHER)
    with AssignerClient(live.url) as client, pytest.raises(ServerError, match="the client is yolo-assigner") as caught:
        client.loss(maps(), BATCH)
    assert caught.value.status == 400

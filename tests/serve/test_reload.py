"""Models, certificates and keys that are replaced while the server runs."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import trustme

from tests.exports import OTHER_ASSIGNER, exported
from tests.serve.conftest import ROOT, Live, assigner_inputs, binary_rows, copy_as, graph_inputs, start, stop, worker_of
from tests.serve.test_failed_models import edit, index, no_graph
from tests.serve.test_tls import command
from yolo_assigner.export import contract
from yolo_assigner.serve.errors import NotFoundError
from yolo_assigner.serve.inference.loading import find_model, names_in, open_artifacts
from yolo_assigner.serve.inference.runners.choice import RunnerOptions

LOAD = "/v2/repository/models/{}/load"
OUTPUT = "target_weights"
CALLERS, EXCHANGES = 3, 3
PAUSE = 0.01  # seconds between the requests of a caller
MODEL, OTHER, ANOTHER = "model-b", "model-a", "model-0"
# Of the assigner, which loads soonest, with results of their own: implementation and hyper-parameters.
VERSIONS: dict[str, tuple[str, dict[str, Any]]] = {"first": ("dense", {}), "second": ("sparse", OTHER_ASSIGNER)}


def put(folder: Path, version: str, name: str = MODEL) -> None:
    """Replace the files of a model."""
    with tempfile.TemporaryDirectory() as new:
        implementation, options = VERSIONS[version]
        copy_as(exported("assigner", implementation, **options), Path(new), name)
        for file in Path(new).iterdir():
            shutil.copy(file, folder / f"{file.name}.new")
            (folder / f"{file.name}.new").replace(folder / file.name)


def result_of(live: Live) -> float:
    rows, blob = binary_rows(assigner_inputs())
    outputs = [{"name": OUTPUT, "parameters": {"binary_data": True}}]
    reply = live.infer(MODEL, {"inputs": rows, "outputs": outputs}, blob)
    assert reply.status == 200, reply.error
    return float(np.frombuffer(reply.body[int(reply.headers["Inference-Header-Content-Length"]) :], np.float32).sum())


class Changing(NamedTuple):
    """A server, and the folder of its models, which tests change."""

    live: Live
    folder: Path


@pytest.fixture(scope="module", params=["--engine-process", "--no-engine-process"])
def changing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    folder = tmp_path_factory.mktemp("changing")
    put(folder, "first")
    server = start("--artifacts", folder, request.param)
    yield Changing(server, folder)
    assert stop(server) == 0


@pytest.fixture
def folder(changing: Changing) -> Path:
    """The folder of a server that has the first version of ``MODEL`` in use."""
    put(changing.folder, "first")
    assert changing.live.send("POST", LOAD.format(MODEL)).status == 200
    return changing.folder


@pytest.fixture
def live(changing: Changing) -> Live:
    """The server of that folder, which may have other models, too."""
    return changing.live


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The result that each version gives, from an engine that never had another."""
    values = {}
    for version in VERSIONS:
        folder = tmp_path_factory.mktemp(version)
        put(folder, version)
        runner = open_artifacts(folder, RunnerOptions(threads=1)).models[MODEL].runner
        runner.load()
        values[version] = float(runner.infer(graph_inputs(), [OUTPUT])[OUTPUT].sum())
        runner.close()
    assert abs(values["first"] - values["second"]) > 0.1
    return values


def test_every_request_is_answered_by_one_version(live: Live, folder: Path, versions: dict[str, float]) -> None:
    answers: list[float] = []
    over = threading.Event()

    def call() -> None:
        while not over.wait(PAUSE):
            answers.append(result_of(live))

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        for number in range(EXCHANGES):
            version = ("second", "first")[number % 2]
            put(folder, version)
            reply = live.send("POST", LOAD.format(MODEL))
            assert (reply.status, reply.json["state"]) == (200, "READY")
            assert result_of(live) == versions[version]
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert set(answers) == set(versions.values())
    assert live.send("GET", f"/v2/models/{MODEL}/stats").json["model_stats"][0]["inference_count"] >= len(answers)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "contract": lambda folder: (folder / f"{MODEL}.json").write_text("{"),
    "hash": lambda folder: (folder / f"{MODEL}.onnx").write_bytes(b"half of it"),
    "graph": lambda folder: no_graph(folder, MODEL),
    "gone": lambda folder: (folder / f"{MODEL}.onnx").unlink(),
}


def test_damaged_files_change_nothing(live: Live, folder: Path, versions: dict[str, float]) -> None:
    for number, damage in enumerate(DAMAGES):
        loaded, following = [("first", "second"), ("second", "first")][number % 2]
        DAMAGES[damage](folder)
        reply = live.send("POST", LOAD.format(MODEL), {})
        assert reply.status == 400, damage
        assert f"model '{MODEL}' cannot be loaded: " in reply.error
        assert "the one that was loaded before stays in use" in reply.error
        assert index(live)[MODEL] == ("READY", ""), damage
        assert result_of(live) == versions[loaded], damage
        put(folder, following)
        assert live.send("POST", LOAD.format(MODEL)).status == 200, damage
        assert result_of(live) == versions[following], damage


def test_unknown_names_and_files_in_requests_are_refused(live: Live, folder: Path) -> None:
    reply = live.send("POST", LOAD.format("nothing"))
    assert (reply.status, "there is no nothing.json in" in reply.error) == (404, True)
    reply = live.send("POST", LOAD.format(MODEL), {"parameters": {"config": "{}"}})
    assert (reply.status, "put them into --artifacts" in reply.error) == (501, True)
    assert live.send("POST", LOAD.format(MODEL), {"parameters": {}}).status == 200
    # A model that was not there before.
    put(folder, "first", OTHER)
    assert live.send("GET", f"/v2/models/{OTHER}/ready").status == 404
    assert live.send("POST", LOAD.format(OTHER)).json["state"] == "READY"
    assert live.send("GET", f"/v2/models/{OTHER}/ready").status == 200
    assert [name for name in index(live) if name != ANOTHER] == [OTHER, MODEL]
    assert OTHER in str(live.send("GET", "/openapi.json").json["paths"]["/v2/models/{name}/infer"])


def test_sighup_reloads_all_models(live: Live, folder: Path, versions: dict[str, float]) -> None:
    put(folder, "second")
    (folder / f"{ANOTHER}.json").write_text("{")  # it comes first
    live.process.send_signal(signal.SIGHUP)
    eventually(lambda: result_of(live) == versions["second"])
    assert ANOTHER not in index(live)
    put(folder, "first", ANOTHER)
    live.process.send_signal(signal.SIGHUP)
    eventually(lambda: live.send("GET", f"/v2/models/{ANOTHER}/ready").status == 200)


def test_models_that_are_not_reloaded_are_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "first")
    live = start("--artifacts", tmp_path)
    try:
        (tmp_path / f"{OTHER}.json").write_text("{")
        live.process.send_signal(signal.SIGHUP)
        log = ""

        def is_done() -> bool:
            nonlocal log
            log += capfd.readouterr().err
            return "reloading is done" in log

        eventually(is_done)
        assert f"model {OTHER} not reloaded: model '{OTHER}' cannot be loaded" in log
        assert f"model {MODEL} is reloaded" in log
    finally:
        assert stop(live) == 0


def test_artifacts_exchanged_under_engines_that_die(tmp_path: Path, versions: dict[str, float]) -> None:
    """The next process loads the current files, and recovers once half-copied ones are complete."""
    put(tmp_path, "first")
    put(tmp_path, "first", OTHER)
    live = start("--artifacts", tmp_path)
    try:
        put(tmp_path, "second")
        edit(tmp_path / f"{OTHER}.json", sha256="")
        os.kill(worker_of(live), signal.SIGKILL)
        eventually(lambda: live.send("GET", f"/v2/models/{MODEL}/ready").status == 200)
        assert result_of(live) == versions["second"]
        assert index(live)[OTHER][0] == "UNAVAILABLE"
        for name in (MODEL, OTHER):
            edit(tmp_path / f"{name}.json", sha256="")
        os.kill(worker_of(live), signal.SIGKILL)
        eventually(lambda: live.send("GET", "/v2/health/ready").status == 503)
        put(tmp_path, "first")
        put(tmp_path, "first", OTHER)
        eventually(lambda: live.send("GET", "/v2/health/ready").status == 200)
        assert result_of(live) == versions["first"]
    finally:
        assert stop(live) == 0


def test_one_model_is_opened_without_reading_the_others(artifacts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model files may be large, and SIGHUP opens all models one by one."""
    read: list[str] = []
    hash_of = contract.file_hash

    def recorded(path: Path) -> str:
        read.append(path.name)
        return hash_of(path)

    monkeypatch.setattr(contract, "file_hash", recorded)
    assert names_in(artifacts_dir) == {"assigner", "loss", "loss_grad"}
    assert read == []
    path, found = find_model(artifacts_dir, "loss")
    assert (path.name, found.name, read) == ("loss.onnx", "loss", ["loss.onnx"])
    for name in ("nobody", f"../{artifacts_dir.name}/loss"):  # names come from requests
        with pytest.raises(NotFoundError, match="only assigner, loss, loss_grad; export the model there"):
            find_model(artifacts_dir, name)


def test_sighup_reloads_the_certificate(tmp_path: Path, assigner_dir: Path) -> None:
    authority = trustme.CA()
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)

    def write(name: str) -> None:
        pair = authority.issue_cert("127.0.0.1", name)
        (tmp_path / "key.pem").write_bytes(pair.private_key_pem.bytes())
        (tmp_path / "chain.pem").write_bytes(b"".join(part.bytes() for part in pair.cert_chain_pems))

    def names() -> set[str]:
        connection = HTTPSConnection(secure.host, secure.port, context=trusted)
        connection.connect()
        found: Any = connection.sock.getpeercert()
        connection.close()
        return {value for kind, value in found["subjectAltName"] if kind == "DNS"}

    write("one.example")
    secure = start_secure(assigner_dir, tmp_path)
    try:
        assert names() == {"one.example"}
        write("two.example")
        (tmp_path / "key.pem").rename(tmp_path / "aside.pem")
        secure.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert names() == {"one.example"}  # half of a pair
        (tmp_path / "aside.pem").rename(tmp_path / "key.pem")
        secure.process.send_signal(signal.SIGHUP)
        eventually(lambda: names() == {"two.example"})
    finally:
        assert stop(secure) == 0


def start_secure(artifacts: Path, folder: Path) -> Live:
    process = subprocess.Popen(
        command(artifacts, folder / "chain.pem", folder / "key.pem", "--no-engine-process"),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    host, port = process.stdout.readline().removeprefix("serving on https://").strip().rsplit(":", 1)
    return Live(host, int(port), process)


def test_sighup_reloads_keys(tmp_path: Path, assigner_dir: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("first-key-of-a-test\n")
    live = start("--artifacts", assigner_dir, "--api-key-file", keys, "--no-engine-process")

    def status(key: str) -> int:
        return live.send("GET", "/v2", headers={"Authorization": f"Bearer {key}"}).status

    try:
        assert status("first-key-of-a-test") == 200
        keys.write_text("\n")
        live.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert status("first-key-of-a-test") == 200  # a file without keys does not open the server
        keys.write_text("second-key-of-a-test\n")
        live.process.send_signal(signal.SIGHUP)
        eventually(lambda: status("first-key-of-a-test") == 403)
        assert status("second-key-of-a-test") == 200
    finally:
        assert stop(live) == 0

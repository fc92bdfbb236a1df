"""What operators rely on: keys, metrics, logs, statistics, stopping."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.conftest import (
    ROOT,
    Live,
    assigner_inputs,
    binary_rows,
    ended,
    json_rows,
    loss_inputs,
    start,
    stop,
    worker_of,
)
from yolo_assigner.serve.client import AssignerClient, ServerError

KEY, ADMIN = "inference-key-of-a-test", "administration-key-of-a-test"
INFER, INFER_ANY = "/v2/models/loss/infer", "/v2/models/assigner/infer"
METRIC = re.compile(r"(?:(rate|increase)\()?\b((?:yolo_assigner|process)_\w+)")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def guarded(dense_dir: Path, metrics_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with keys and metrics."""
    files = {name: tmp_path_factory.mktemp("keys") / name for name in ("api", "admin")}
    files["api"].write_text(f"# one\nanother-key-for-rotation\n{KEY}\n")
    files["admin"].write_text(ADMIN)
    words = ("--api-key-file", files["api"], "--admin-key-file", files["admin"], "--metrics-port", str(metrics_port))
    live = start("--artifacts", dense_dir, *words)
    yield live
    assert stop(live) == 0


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_of_a_live_server(guarded: Live) -> None:
    rows, blob = binary_rows(loss_inputs())
    assert guarded.infer("loss", {"inputs": rows}, blob).status == 401
    assert guarded.infer("loss", {"inputs": rows}, blob, **bearer("wrong-key-of-a-test")).status == 403
    assert guarded.infer("loss", {"inputs": rows}, blob, **bearer(KEY)).status == 200
    assert guarded.send("GET", "/v2/health/ready").status == 200
    assert guarded.send("GET", "/openapi.json").status == 401
    refused = guarded.send("GET", "/v2/systemsharedmemory/status", headers=bearer(KEY))
    assert (refused.status, "administration" in refused.error) == (403, True)
    assert guarded.send("GET", "/v2/systemsharedmemory/status", headers=bearer(ADMIN)).status == 501


def test_a_client_with_a_key(guarded: Live) -> None:
    arrays = loss_inputs()
    feats = [arrays[f"feat_{level}"] for level in range(3)]
    batch = {"batch_idx": [0], "cls": [1], "bboxes": [[0.5, 0.5, 0.4, 0.4]]}
    with AssignerClient(guarded.url, key=KEY) as client:
        assert client.loss(feats, batch).loss > 0
    with AssignerClient(guarded.url) as client, pytest.raises(ServerError, match="wants a key") as caught:
        client.loss(feats, batch)
    assert caught.value.status == 401


def test_a_large_body_without_a_key_is_answered_and_not_cut_off(guarded: Live) -> None:
    """While the caller still sends: it must see the reason and not a broken pipe, and may use the connection again."""
    with socket.create_connection((guarded.host, guarded.port), timeout=120) as connection:
        for _ in range(2):
            size = 32 * 2**20
            head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {size}\r\n\r\n"
            connection.sendall(head.encode())
            connection.sendall(bytes(size))
            reply = connection.recv(2**16)
            assert reply.startswith(b"HTTP/1.1 401"), reply
            assert b"wants a key" in reply


def metrics_text(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as response:
        return str(response.read().decode())


def samples(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics_text(port))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_metrics_count_what_happens(guarded: Live, metrics_port: int) -> None:
    rows, blob = binary_rows(loss_inputs(images=2))
    before = samples(metrics_port)
    for _ in range(3):
        assert guarded.infer("loss", {"inputs": rows}, blob, **bearer(KEY)).status == 200
    assert guarded.infer("loss", {"inputs": rows[1:]}, blob, **bearer(KEY)).status == 400
    after = samples(metrics_port)

    def grown(name: str, **labels: str) -> float:
        key = (f"yolo_assigner_{name}", tuple(sorted(labels.items())))
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert grown("requests_total", route="infer", status="200") == 3
    assert grown("failures_total", route="infer", reason="bad_request") == 1
    assert grown("batch_images_count", model="loss") == 3
    assert grown("batch_images_sum", model="loss") == 6
    assert grown("engine_seconds_count", model="loss") == 3
    assert grown("received_bytes_total") > 3 * len(blob)
    assert grown("sent_bytes_total") > 0
    assert after["yolo_assigner_models_ready", ()] == 3
    assert after["yolo_assigner_requests_under_way", ()] == 0
    assert not [name for name, labels in after if any(KEY in value for _, value in labels)]


def test_restarts_of_the_engines_are_counted(guarded: Live, metrics_port: int) -> None:
    name = "yolo_assigner_engine_restarts"
    before = samples(metrics_port)[f"{name}_total", ()]
    os.kill(worker_of(guarded), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while samples(metrics_port)[f"{name}_total", ()] == before or guarded.send("GET", "/v2/health/ready").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert samples(metrics_port)[f"{name}_total", ()] == before + 1
    types = {family.name: family.type for family in text_string_to_metric_families(metrics_text(metrics_port))}
    assert types[name] == "counter"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed; it comes with Prometheus")
def test_metrics_are_named_as_prometheus_advises(guarded: Live, metrics_port: int) -> None:
    assert guarded.send("GET", "/v2/health/ready").status == 200
    text = metrics_text(metrics_port)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", ["grafana/yolo-assigner.json", "prometheus-alerts.yml"])
def test_every_metric_that_is_watched_exists(path: str, guarded: Live, metrics_port: int) -> None:
    """And a rate is of what is counted, everything else of what is not."""
    assert guarded.send("GET", "/v2/health/ready").status == 200
    types = {family.name: family.type for family in text_string_to_metric_families(metrics_text(metrics_port))}
    used = METRIC.findall((ROOT / "deploy" / path).read_text())
    assert len(used) > 8
    for function, name in used:
        stem = name.removesuffix("_total").removesuffix("_bucket")
        assert stem in types, name
        assert (types[stem] in ("counter", "histogram")) == (function in ("rate", "increase")), name


def test_statistics(live: Live) -> None:
    def of_loss() -> dict[str, object]:
        (entry,) = live.send("GET", "/v2/models/loss/stats").json["model_stats"]
        return dict(entry)

    before = of_loss()
    assert live.infer("loss", {"inputs": json_rows(loss_inputs())}).status == 200
    assert live.infer("loss", {"inputs": []}).status == 400
    after = of_loss()
    assert after["inference_count"] == before["inference_count"] + 1  # type: ignore[operator]
    phases, earlier = after["inference_stats"], before["inference_stats"]
    for phase in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        assert phases[phase]["count"] == earlier[phase]["count"] + 1, phase  # type: ignore[index]
        assert phases[phase]["ns"] > earlier[phase]["ns"], phase  # type: ignore[index]
    every = live.send("GET", "/v2/models/stats").json["model_stats"]
    assert [entry["name"] for entry in every] == ["assigner", "loss", "loss_grad"]
    assert live.send("GET", "/v2/models/loss/versions/1/stats").json["model_stats"][0]["version"] == "1"
    assert live.send("GET", "/v2/models/nobody/stats").status == 404


def test_request_identifiers_and_json_logs(assigner_dir: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "yolo_assigner",
        "serve",
        "--port",
        "0",
        "--artifacts",
        str(assigner_dir),
        "--log-format",
        "json",
        "--no-engine-process",
    ]
    environment = os.environ | {"YOLO_ASSIGNER_API_KEYS": KEY}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        host, port = process.stdout.readline().strip().removeprefix("serving on http://").rsplit(":", 1)
        live = Live(host, int(port), process)
        given = live.send("GET", "/nothing", headers=bearer(KEY) | {"X-Request-Id": "from-the-caller"})
        assert given.headers["X-Request-Id"] == "from-the-caller"
        made = live.send("GET", "/v2/health/live", headers={"X-Request-Id": 'bad "id" with spaces'})
        assert len(made.headers["X-Request-Id"]) == 32
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    (line,) = [line for line in lines if line.get("path") == "/nothing"]
    assert (line["request_id"], line["status"], line["level"]) == ("from-the-caller", 404, "INFO")
    assert KEY not in errors


def test_a_lame_duck_still_serves(assigner_dir: Path) -> None:
    port = free_port()
    live = start("--artifacts", assigner_dir, "--lame-duck-seconds", "2", "--metrics-port", str(port))
    rows, blob = binary_rows(assigner_inputs())
    assert samples(port)["yolo_assigner_ready", ()] == 1
    began = time.monotonic()
    live.process.send_signal(signal.SIGTERM)
    refused = live.send("GET", "/v2/health/ready")
    assert (refused.status, "about to stop" in refused.error) == (503, True)
    assert samples(port)["yolo_assigner_ready", ()] == 0
    served = live.infer("assigner", {"inputs": rows}, blob)
    assert served.status == 200
    assert served.headers["Connection"] == "close"
    assert ended(live) == 0
    assert 1.5 < time.monotonic() - began < 10


def test_a_second_signal_ends_at_once(assigner_dir: Path) -> None:
    live = start("--artifacts", assigner_dir, "--lame-duck-seconds", "60")
    live.process.send_signal(signal.SIGTERM)
    while live.send("GET", "/v2/health/ready").status == 200:
        time.sleep(0.01)
    began = time.monotonic()
    live.process.send_signal(signal.SIGTERM)
    assert ended(live) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 2


def test_a_request_under_way_is_finished_before_the_end(assigner_dir: Path) -> None:
    live = start("--artifacts", assigner_dir)
    rows, blob = binary_rows(assigner_inputs())
    text = json.dumps({"inputs": rows}).encode()
    head = f"POST {INFER_ANY} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(text) + len(blob)}\r\n"
    head += f"inference-header-content-length: {len(text)}\r\n\r\n"
    with socket.create_connection((live.host, live.port), timeout=120) as connection:
        connection.sendall(head.encode() + text)
        time.sleep(0.3)  # its place is taken before its tensors come
        live.process.send_signal(signal.SIGTERM)
        sender = threading.Timer(0.5, connection.sendall, [blob])
        sender.start()
        reply = connection.recv(2**16)
    assert reply.startswith(b"HTTP/1.1 200"), reply[:200]
    assert ended(live) == 0


def test_the_process_of_the_engines_gets_no_secret(assigner_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"API_KEYS": KEY, "ADMIN_KEYS": ADMIN, "SSL_KEYFILE_PASSWORD": "password-of-a-test"}
    for name, secret in secrets.items():
        monkeypatch.setenv(f"YOLO_ASSIGNER_{name}", secret)
    live = start("--artifacts", assigner_dir)
    folder = Path(f"/proc/{worker_of(live)}")
    rows, blob = binary_rows(assigner_inputs())
    assert live.infer("assigner", {"inputs": rows}, blob, **bearer(KEY)).status == 200
    try:
        seen = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
    finally:
        assert stop(live) == 0
    assert b"PATH=" in seen
    assert not [name for name, secret in secrets.items() if secret.encode() in seen]


def test_too_many_at_one_time(assigner_dir: Path) -> None:
    """The place is given back when the caller hangs up."""
    live = start("--artifacts", assigner_dir, "--max-requests", "1")
    rows, blob = binary_rows(assigner_inputs())
    with socket.create_connection((live.host, live.port)) as connection:
        connection.sendall(f"POST {INFER_ANY} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n".encode())
        deadline = time.monotonic() + 60
        while (reply := live.infer("assigner", {"inputs": rows}, blob)).status == 200:
            assert time.monotonic() < deadline
        assert reply.status == 503
        assert reply.headers["Retry-After"] == "1"
        assert live.send("GET", "/v2/health/ready").status == 200
    while live.infer("assigner", {"inputs": rows}, blob).status != 200:
        assert time.monotonic() < deadline
    assert stop(live) == 0


def test_beyond_loopback_only_with_keys(assigner_dir: Path) -> None:
    command = [sys.executable, "-m", "yolo_assigner", "serve", "--artifacts", str(assigner_dir), "--host", "0.0.0.0"]  # noqa: S104
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 2
    assert "api_key_file" in done.stderr


def test_show_config(assigner_dir: Path) -> None:
    command = [sys.executable, "-m", "yolo_assigner", "serve", "--artifacts", str(assigner_dir), "--show-config"]
    environment = os.environ | {"YOLO_ASSIGNER_API_KEYS": KEY}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True, env=environment)
    assert 'api_keys = ["********"]  # YOLO_ASSIGNER_API_KEYS' in done.stdout
    assert KEY not in done.stdout + done.stderr

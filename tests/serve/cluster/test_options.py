"""Settings on their way to replicas and proxies. No Ray is needed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.serve.conftest import ROOT
from yolo_assigner.serve.cluster.options import arguments_of, proxy_variables, replica_settings
from yolo_assigner.serve.settings import Configuration, defaults_for, read_settings
from yolo_assigner.serve.system import MIB, memory_limit


def configured(*words: str, **environment: str) -> Configuration:
    """Settings as ``yolo-assigner serve --ray`` reads them."""
    return read_settings(["--ray", "--artifacts", "models", *words], environment)


def test_only_what_was_given_goes_to_replicas() -> None:
    given = arguments_of(configured("--batch-images", "4", "--trusted-proxy", "10.0.0.0/8"))
    assert given == {
        "ray": True,
        "artifacts": str(Path("models").resolve()),  # a replica has another working folder
        "batch_images": 4,
        "trusted_proxy": ["10.0.0.0/8"],
    }
    assert json.loads(json.dumps(given)) == given
    settings = replica_settings(given)
    assert (settings.batch_images, settings.trusted_proxy, settings.engine_process) == (4, ("10.0.0.0/8",), False)


@pytest.mark.parametrize(
    ("words", "environment", "text"),
    [
        (("--unix-socket", "s"), {}, "unix_socket .--unix-socket. cannot be used on Ray: .* give host and port"),
        (("--shared-memory", "/p"), {}, "shared_memory .* send tensors in the body"),
        (("--metrics-port", "1"), {}, "metrics_port .* Ray collects metrics itself"),
        (("--port", "0"), {}, "port 0: .* choose a number"),
        ((), {"YOLO_ASSIGNER_API_KEYS": "a-key-of-some-length"}, "api_keys .* dashboard; name a file"),
    ],
)
def test_what_a_cluster_cannot_use_is_refused(words: tuple[str, ...], environment: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        arguments_of(configured(*words, **environment))
    assert "a-key-of-some-length" not in str(caught.value)


def test_arguments_decide_and_not_the_environment_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_ASSIGNER_METRICS_PORT", "8002")  # as the image has it
    monkeypatch.setenv("YOLO_ASSIGNER_BATCH_IMAGES", "9")
    settings = replica_settings({"artifacts": "a"})
    assert (settings.metrics_port, settings.batch_images) == (None, 1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "artifacts: it is needed"),
        ({"artifacts": "a", "replicas": 2}, "replicas .args.: Extra inputs are not permitted"),
        ({"artifacts": "a", "ray_requests": 0}, "ray_requests .args.: .* not 0"),
        ({"artifacts": "a", "ray_replicas": 3, "ray_max_replicas": 2}, "ray_max_replicas 2 is below ray_replicas 3"),
        ({"artifacts": "a", "metrics_port": 1}, "metrics_port .args. cannot be used on Ray"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replica_settings(arguments)


def test_replicas_share_the_memory_of_their_machine() -> None:
    settings = replica_settings({"artifacts": "a", "ray_replicas": 2, "ray_max_replicas": 64})
    assert settings.max_request_bytes == defaults_for(memory_limit().nbytes // 64)["max_request_bytes"]
    assert replica_settings({"artifacts": "a", "max_request_bytes": 5 * MIB}).max_request_bytes == 5 * MIB


def test_threads_are_the_cores_that_ray_reserves() -> None:
    assert replica_settings({"artifacts": "a", "ray_cpus": 2.5}).threads == 2
    assert replica_settings({"artifacts": "a", "ray_cpus": 0.5}).threads == 1
    assert replica_settings({"artifacts": "a", "ray_cpus": 2.0, "threads": 7}).threads == 7


def test_proxies_are_told_limits_and_the_file_of_keys() -> None:
    given = {"artifacts": "a", "max_requests": 3, "api_key_file": "/k", "batch_images": 4}
    assert proxy_variables(given) == {"YOLO_ASSIGNER_MAX_REQUESTS": "3", "YOLO_ASSIGNER_API_KEY_FILE": "/k"}


def test_the_config_file_has_settings_that_exist() -> None:
    config = yaml.safe_load((ROOT / "deploy/ray-serve.yaml").read_text(encoding="utf-8"))
    (application,) = config["applications"]
    settings = replica_settings(application["args"])
    assert (settings.ray_gpus, settings.ray_max_replicas, settings.ray_revision) == (1.0, 8, "1")
    assert settings.host == config["http_options"]["host"]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_command_says_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "yolo_assigner", "serve", "--ray", "--artifacts", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "install yolo-assigner[ray]" in done.stderr
    assert "Traceback" not in done.stderr

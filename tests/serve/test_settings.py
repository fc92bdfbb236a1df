"""Settings from flags, environment and a file, and what is said of bad ones."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from yolo_assigner.serve.settings import Settings, describe, is_loopback, read_settings

KEY = "a-key-of-some-length"


def test_flags_before_environment_before_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('artifacts = "from file"\nport = 1\nthreads = 1\nmax_requests = 1\n')
    environment = {"YOLO_ASSIGNER_PORT": "2", "YOLO_ASSIGNER_THREADS": "2", "PORT": "9"}
    words = ["--config", str(path), "--port", "3"]
    settings, sources, show, _ = read_settings(words, environment)
    assert (settings.port, settings.threads, settings.max_requests) == (3, 2, 1)
    assert (settings.artifacts, settings.log_level) == (Path("from file"), "info")
    assert sources == {
        "artifacts": str(path),
        "max_requests": str(path),
        "threads": "YOLO_ASSIGNER_THREADS",
        "port": "--port",
    }
    assert not show
    again = read_settings([], {"YOLO_ASSIGNER_CONFIG": str(path)}).settings
    assert again.port == 1


def test_every_setting_can_come_from_everywhere(tmp_path: Path) -> None:
    """But for secrets, which are no flags: other users of the machine see those."""
    values = {
        "artifacts": "a", "host": "::1", "port": "1", "unix_socket": "u", "engine": "torch", "device": "cuda:1",
        "threads": "2", "engine_process": "true", "engine_timeout": "3.5",
        "max_request_bytes": "3", "max_json_bytes": "2", "max_work_bytes": "1", "max_requests": "4",
        "max_total_bytes": "5", "max_connections": "7", "request_timeout": "6.5", "client_timeout": "9.5",
        "batch_images": "6", "batch_wait": "0.25", "compress_replies": "true",
        "lame_duck_seconds": "7.5", "drain_seconds": "8.5", "shared_memory": "/p",
        "allowed_host": "n", "cors_origin": "https://o", "trusted_proxy": "10.0.0.0/8",
        "api_key_file": "f", "admin_key_file": "g", "insecure": "true", "ssl_certfile": "c",
        "ssl_keyfile": "k", "metrics_host": "h",
        "metrics_port": "9", "log_level": "debug", "log_format": "json",
        "ray": "true", "ray_replicas": "2", "ray_max_replicas": "3", "ray_cpus": "0.5", "ray_gpus": "0.25",
        "ray_requests": "8", "ray_target_requests": "1.5", "ray_revision": "r",
    }  # fmt: skip
    secrets = {"api_keys": f"{KEY},{KEY}", "admin_keys": KEY, "ssl_keyfile_password": "p"}
    assert values.keys() | secrets.keys() == Settings.model_fields.keys()
    environment = {f"YOLO_ASSIGNER_{name.upper()}": value for name, value in (values | secrets).items()}
    from_environment = read_settings([], environment).settings
    flags = [f"--{name.replace('_', '-')}{'' if value == 'true' else f'={value}'}" for name, value in values.items()]
    variables = {name: value for name, value in environment.items() if name[14:].lower() in secrets}
    assert read_settings(flags, variables).settings == from_environment
    path = tmp_path / "serve.toml"
    lines = [f'{name} = "{value}"' for name, value in (values | secrets).items()]
    path.write_text("\n".join(lines))
    assert read_settings(["--config", str(path)], {}).settings == from_environment
    assert len(from_environment.api_keys) == 2


def test_what_is_shown_can_be_read_again_and_has_no_secret() -> None:
    environment = {"YOLO_ASSIGNER_API_KEYS": KEY, "YOLO_ASSIGNER_SSL_KEYFILE_PASSWORD": "very secret"}
    configuration = read_settings(["--artifacts", 'with "quotes"', "--show-config"], environment)
    assert configuration.show
    text = describe(configuration)
    assert KEY not in text
    assert "very secret" not in text
    assert "port = 8000  # default" in text
    assert "api_keys = " in text
    assert "# YOLO_ASSIGNER_API_KEYS" in text
    read = tomllib.loads(text)
    assert read["artifacts"] == 'with "quotes"'
    assert Settings(**read).max_requests == configuration.settings.max_requests


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["--artifacts", "a", "--no-engine-process", "--engine-timeout", "1"], {}, "engine_timeout ends the engines'"),
        ([], {}, "artifacts: it is needed; give --artifacts or YOLO_ASSIGNER_ARTIFACTS"),
        (["--artifacts", "a", "--port", "many"], {}, "port (--port): "),
        (["--artifacts", "a"], {"YOLO_ASSIGNER_THREADS": "-1"}, "threads (YOLO_ASSIGNER_THREADS): "),
        (["--artifacts", "a", "--engine", "magic"], {}, "there is no engine 'magic'; choose one of auto"),
        (["--artifacts", "a", "--device", "gpu"], {}, "write cpu, cuda or cuda:N"),
        (
            ["--artifacts", "a", "--trusted-proxy", "front"],
            {},
            "give an address, as 10.0.0.7, a network, as 10.0.0.0/8, or unix",
        ),
        (["--artifacts", "a", "--log-level", "loud"], {}, "log_level (--log-level): "),
        (["--artifacts", "a", "--host", "0.0.0.0"], {}, "give api_key_file, or say insecure"),  # noqa: S104
        (["--artifacts", "a", "--ssl-keyfile", "k"], {}, "ssl_certfile and ssl_keyfile go together"),
        (["--artifacts", "a", "--config", "/nowhere"], {}, "settings file /nowhere cannot be read"),
    ],
    ids=str,
)
def test_bad_settings_are_named_with_their_source(words: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        read_settings(words, environment)
    assert message in str(caught.value)


def test_a_file_with_an_unknown_name(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('artifacts = "a"\nprot = 1\n')
    with pytest.raises(ValueError, match="prot"):
        read_settings(["--config", str(path)], {})
    path.write_text("port = [")
    with pytest.raises(ValueError, match="cannot be read"):
        read_settings(["--config", str(path)], {})


def test_a_bad_secret_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('artifacts = "a"\napi_keys = [1234567]\n')
    with pytest.raises(ValueError, match=r"api_keys \(") as caught:
        read_settings(["--config", str(path)], {})
    assert "1234567" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),  # noqa: S104
     ("::", False), ("192.168.0.1", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_beyond_loopback_with_a_key_or_on_purpose() -> None:
    words = ["--artifacts", "a", "--host", "0.0.0.0"]  # noqa: S104
    assert read_settings([*words, "--insecure"], {}).settings.insecure
    assert read_settings(words, {"YOLO_ASSIGNER_API_KEYS": KEY}).settings.api_keys
    assert read_settings([*words, "--api-key-file", "k"], {}).settings.api_key_file == Path("k")
    assert read_settings([*words, "--unix-socket", "s"], {}).settings.local


def test_proxies_by_address_network_or_socket(tmp_path: Path) -> None:
    words = ["--artifacts", "a", "--trusted-proxy", "10.0.0.7", "--trusted-proxy", "unix"]
    assert read_settings(words, {}).settings.trusted_proxy == ("10.0.0.7", "unix")
    path = tmp_path / "serve.toml"
    path.write_text('artifacts = "a"\nunix_socket = "/run/serve.sock"\ntrusted_proxy = ["unix", "10.0.0.0/8"]\n')
    settings = read_settings(["--config", str(path)], {}).settings
    assert (settings.unix_socket, settings.trusted_proxy) == (Path("/run/serve.sock"), ("unix", "10.0.0.0/8"))

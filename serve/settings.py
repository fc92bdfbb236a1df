"""The server's settings: one typed object from flags, environment, TOML file and defaults, in that order.

pydantic-settings reads the environment and the file. The flags are argparse's own: its source for the command line
would also take secrets as flags, where other users of the machine see them.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from yolo_assigner.serve.inference.runners.base import ENGINES, parse_device
from yolo_assigner.serve.system import MIB, PREFIX, Memory, memory_limit

SECRETS = ("api_keys", "admin_keys", "ssl_keyfile_password")
HIDDEN = "********"
# Where memory is short, these defaults are 1/16, 1/64, ... of it. A request needs at most 8 times its body, or 50 times
# its JSON, and what the engine needs. The process that answers holds bodies and replies alone, less than half of the
# memory.
PARTS = {"max_request_bytes": 16, "max_json_bytes": 64, "max_work_bytes": 4, "max_total_bytes": 10}
LEAST_MEMORY = 256 * MIB  # with less memory than this, the defaults are those for this
UNIX = "unix"  # in place of an address: callers of the Unix socket have none
HOST_NAME = re.compile(r"[\w*.-]+", re.ASCII)
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([\w.-]+|\[[0-9a-f:.]+\])(:\d+)?", re.ASCII | re.IGNORECASE)
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]


def setting(default: Any, description: str, metavar: str | None = None) -> Any:
    """A field with what the command line shows of it."""
    return Field(default, description=description, json_schema_extra={"metavar": metavar} if metavar else None)


class Settings(BaseSettings):
    """All settings of the server; a field's description is the help of its flag.

    :func:`read_settings` makes them from a command line. Made directly, they are taken from the arguments and the
    environment.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        enable_decoding=False,  # several values come with commas between them, not as JSON
        extra="forbid",
        frozen=True,
        validate_default=False,
    )

    artifacts: Path = setting(..., "where `yolo-assigner export` wrote", "DIR")
    host: str = setting("127.0.0.1", "address to listen on; :: for all of IPv6 and IPv4")
    port: Port = setting(8000, "0 chooses a free one", "N")
    unix_socket: Path | None = setting(None, "Unix socket to listen on, in place of host and port", "FILE")

    engine: str = setting("auto", f"what runs the models, one of {', '.join(ENGINES)}; auto: the fastest that loads")
    device: str | None = setting(None, "cpu, cuda or cuda:N; a GPU if one can be used, when not given")
    engine_process: bool = setting(
        sys.platform == "linux", "models in a process of their own, which is started again when it ends"
    )
    engine_timeout: Seconds = setting(
        0.0, "seconds that an engine may compute one request, 0 for ever; then its process is started again", "SECONDS"
    )
    threads: int = Field(default=0, ge=0, description="threads of each model on a CPU, 0 for one per core")

    batch_images: Count = setting(1, "images of requests that are computed together, 1 for none", "N")
    batch_wait: Seconds = setting(
        0.0, "seconds that a request may wait for others, while the engine is idle", "SECONDS"
    )

    max_request_bytes: Count = setting(256 * MIB, "largest body, also once unpacked", "BYTES")
    max_json_bytes: Count = setting(64 * MIB, "largest JSON of a request, without binary tensors", "BYTES")
    max_work_bytes: Count = setting(4096 * MIB, "memory that a request may need beside its tensors", "BYTES")
    max_requests: Count = setting(64, "requests at one time; more are told to come again", "N")
    max_connections: Count = setting(
        1000, "connections at one time, in no more than half of the descriptors; beyond it unused ones are closed", "N"
    )
    max_total_bytes: Count = setting(1024 * MIB, "bodies of all requests at one time", "BYTES")
    request_timeout: Seconds = setting(0.0, "seconds that a request may wait for its model, 0 for ever", "SECONDS")
    compress_replies: bool = setting(False, "gzip for callers that accept it; costs more time than fast lines save")
    client_timeout: Seconds = setting(30.0, "longest pause of a caller that sends or receives, 0 for ever", "SECONDS")
    lame_duck_seconds: Seconds = setting(0.0, "still serving, but not ready, after SIGTERM", "SECONDS")
    drain_seconds: Seconds = setting(30.0, "then for requests under way to end", "SECONDS")
    shared_memory: str | None = setting(None, "take tensors from shared memory whose names begin so", "PREFIX")

    api_key_file: Path | None = setting(None, "keys for inference, one a line, as KEY or NAME: KEY", "FILE")
    admin_key_file: Path | None = setting(None, "keys for administration, likewise", "FILE")
    api_keys: tuple[SecretStr, ...] = setting((), "keys for inference; not as a flag, which other users could see")
    admin_keys: tuple[SecretStr, ...] = setting((), "keys for administration; not as a flag")
    insecure: bool = setting(False, "listen beyond loopback without keys")
    allowed_host: tuple[str, ...] = setting(
        (), "name that callers may call the server by, as *.example.com; may be given several times", "NAME"
    )
    cors_origin: tuple[str, ...] = setting(
        (), "whose web pages may call, as https://example.com; may be given several times", "ORIGIN"
    )
    trusted_proxy: tuple[str, ...] = setting(
        (), f"address, network or {UNIX}, whose X-Forwarded-For is believed; may be given several times", "ADDRESS"
    )
    ssl_certfile: Path | None = setting(None, "certificate, for TLS", "FILE")
    ssl_keyfile: Path | None = setting(None, "its private key", "FILE")
    ssl_keyfile_password: SecretStr | None = setting(None, "of the private key; not as a flag")

    metrics_host: str = setting("127.0.0.1", "address of the metrics")
    metrics_port: Port | None = setting(None, "port of Prometheus metrics; none when not given", "N")
    log_level: Literal["critical", "error", "warning", "info", "debug"] = setting("info", "least level that is logged")
    log_format: Literal["text", "json"] = setting("text", "text for people, json for collectors")

    ray: bool = setting(False, "replicas on a Ray cluster of this machine, in place of one server; yolo-assigner[ray]")
    ray_replicas: Count = setting(1, "least replicas on Ray", "N")
    ray_max_replicas: Count | None = setting(
        None, "most replicas, by the requests that wait; as many as the least when not given", "N"
    )
    ray_cpus: float = setting(1.0, "CPU cores that Ray reserves for a replica, and threads of each model", "N")
    ray_gpus: float = setting(0.0, "GPUs of a replica; a fraction, as 0.5, lets replicas share one", "N")
    ray_requests: Count = setting(4, "requests at a replica at one time; others wait in Ray's proxies", "N")
    ray_target_requests: float = setting(
        2.0, "requests, waiting ones included, that one replica is to have; for more Ray starts others", "N"
    )
    ray_revision: str = setting("", "any text; with another one Ray replaces all replicas, new ones first", "TEXT")

    @field_validator("api_keys", "admin_keys", "allowed_host", "cors_origin", "trusted_proxy", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """In the environment several values have commas between them."""
        return [one for one in value.split(",") if one] if isinstance(value, str) else value

    @field_validator("allowed_host")
    @classmethod
    def _check_host_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not HOST_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no host name; write it without scheme and port, * for any characters")
        return tuple(name.lower() for name in names)

    @field_validator("trusted_proxy")
    @classmethod
    def _check_proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                if proxy != UNIX:
                    ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(
                    f"{error}; give an address, as 10.0.0.7, a network, as 10.0.0.0/8, or {UNIX} for callers of the "
                    "Unix socket"
                ) from error
        return proxies

    @field_validator("cors_origin")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; write it as browsers send it: https://example.com:8443")
        return tuple(origin.lower() for origin in origins)

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, engine: str) -> str:
        if engine not in ENGINES:
            raise ValueError(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
        return engine

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str | None) -> str | None:
        if device is not None:
            parse_device(device)
        return device

    @field_validator("engine_process")
    @classmethod
    def _check_platform(cls, value: bool) -> bool:
        if value and sys.platform != "linux":
            raise ValueError(f"{sys.platform} has no memory for it that two processes see; leave it out")
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if not (self.local or self.api_keys or self.api_key_file or self.insecure):
            raise ValueError(
                f"host {self.host} can be reached by others and there are no keys; give api_key_file, or say insecure "
                "where every caller is trusted"
            )
        if self.engine_timeout and not self.engine_process:
            raise ValueError("engine_timeout ends the engines' process; leave engine_process as it is")
        if self.batch_wait and self.batch_images == 1:
            raise ValueError("batch_wait does nothing alone; give batch_images, the most images of a call, too")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile go together; give both")
        if self.ray_max_replicas is not None and self.ray_max_replicas < self.ray_replicas:
            raise ValueError(
                f"ray_max_replicas {self.ray_max_replicas} is below ray_replicas {self.ray_replicas}; swap or raise it"
            )
        return self

    @property
    def local(self) -> bool:
        """Whether the server can be reached from this machine alone."""
        return self.unix_socket is not None or is_loopback(self.host)

    @property
    def keyfile_password(self) -> str | None:
        """Password of the TLS key; None: it has none."""
        return self.ssl_keyfile_password.get_secret_value() if self.ssl_keyfile_password else None


def defaults_for(memory: int) -> dict[str, int]:
    """Defaults of the settings that depend on the memory.

    Args:
        memory: Bytes that the server may use.

    Returns:
        Bytes by setting.
    """
    least = max(memory, LEAST_MEMORY)
    return {name: min(Settings.model_fields[name].default, least // part) for name, part in PARTS.items()}


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone. Names other than localhost count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Configuration(NamedTuple):
    """Settings and their sources.

    Attributes:
        settings: The values.
        sources: By setting, the flag, variable or file that it was taken from; settings not listed have defaults.
        show: Whether they are to be printed, and nothing served.
        memory: The memory that some defaults depend on.
    """

    settings: Settings
    sources: dict[str, str]
    show: bool
    memory: Memory

    def source(self, name: str) -> str:
        """Where a setting was taken from."""
        return self.sources.get(name, f"default for {self.memory}" if name in PARTS else "default")

    @property
    def limits(self) -> str:
        """The settings whose defaults depend on the memory, with their sources."""
        return "; ".join(f"{name} = {getattr(self.settings, name)} ({self.source(name)})" for name in PARTS)

    @property
    def warning(self) -> str | None:
        """What to say about bodies that the memory has no room for; None: it has."""
        most = self.memory.nbytes // 2
        if self.settings.max_total_bytes <= most:
            return None
        return (
            f"max_total_bytes = {self.settings.max_total_bytes} ({self.source('max_total_bytes')}) is more than half "
            f"of {self.memory}; the system may kill the server, which holds the bodies: set it to {most} or less"
        )


def read_settings(
    arguments: Sequence[str] | None, environment: Mapping[str, str], memory: Memory | None = None
) -> Configuration:
    """Read the settings from their sources.

    Args:
        arguments: Command line without the program; the process's own when None.
        environment: Variables named ``YOLO_ASSIGNER_`` and the setting in capitals; ``YOLO_ASSIGNER_CONFIG`` names a
            TOML file, as ``--config`` does.
        memory: Memory that the server may use; the system's limit when None.

    Raises:
        ValueError: A value cannot be used; the text says where it came from.
        SystemExit: Help was asked for, or a flag is unknown.
    """
    flags = {name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    show = flags.pop("show_config")
    path = flags.pop("config", environment.get(f"{PREFIX}CONFIG"))
    memory = memory or memory_limit()
    variables = EnvSettingsSource(Settings)
    variables.env_vars = {name.lower(): value for name, value in environment.items()}
    file = _file_source(Path(path)) if path else InitSettingsSource(Settings, {})
    defaults = InitSettingsSource(Settings, defaults_for(memory.nbytes))
    sources = {
        **dict.fromkeys(file(), str(path)),
        **{name: f"{PREFIX}{name.upper()}" for name in variables()},
        **{name: f"--{name.replace('_', '-')}" for name in flags},
    }
    try:
        settings = Settings(_build_sources=((InitSettingsSource(Settings, flags), variables, file, defaults), {}))  # type: ignore[call-arg]
    except ValidationError as error:
        raise ValueError(explain(error, sources)) from error
    return Configuration(settings, sources, show, memory)


def describe(configuration: Configuration) -> str:
    """All settings as a TOML file, each with its source in a comment; secrets are hidden."""
    lines = []
    for name, value in configuration.settings:
        lines.append(f"{'# ' if value is None else ''}{name} = {_toml(value)}  # {configuration.source(name)}")
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    if isinstance(value, SecretStr):
        return json.dumps(HIDDEN)
    # The strings, numbers and booleans of JSON are those of TOML.
    return json.dumps("" if value is None else str(value) if isinstance(value, Path) else value)


def _file_source(path: Path) -> TomlConfigSettingsSource:
    try:
        path.read_bytes()  # the source skips a file that is not there
        return TomlConfigSettingsSource(Settings, path)
    except (OSError, ValueError) as error:
        raise ValueError(f"settings file {path} cannot be read: {error}") from error


def explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    """Name each wrong setting with its source, its value unless it is secret, and the remedy.

    Args:
        error: Of making :class:`Settings`.
        sources: Where values came from, by setting.
    """
    lines = []
    for wrong in error.errors(include_url=False):
        name = str(wrong["loc"][0]) if wrong["loc"] else ""
        message = wrong["msg"].removeprefix("Value error, ")
        if wrong["type"] == "missing":
            message = f"it is needed; give --{name} or {PREFIX}{name.upper()}"
        elif name and name not in SECRETS and not wrong["type"].startswith("value_error"):
            message = f"{message}, not {wrong['input']!r}"
        source = sources.get(name)
        lines.append(": ".join(part for part in (f"{name} ({source})" if source else name, message) if part))
    return "; ".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="yolo-assigner serve",
        description="Serve exported models over HTTP: Open Inference Protocol v2 under /v2, typed JSON under /v1.",
        epilog=f"Each setting may also stand in a TOML file or in the environment, as {PREFIX}PORT for --port.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings by these names, - written _")
    parser.add_argument("--show-config", action="store_true", help="print the settings with their sources, and stop")
    for name, field in Settings.model_fields.items():
        if name not in SECRETS:
            _add_flag(parser, name, field)
    return parser


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    flag = f"--{name.replace('_', '-')}"
    default = "" if field.is_required() or field.default in (None, ()) else f" (default: {field.default})"
    if name in PARTS:
        default = f" (default: {field.default}, or 1/{PARTS[name]} of the memory if that is less)"
    text = f"{field.description}{default}"
    if field.annotation is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    metavar = str(extra.get("metavar", name.rpartition("_")[2].upper()))
    several = field.annotation == tuple[str, ...]
    parser.add_argument(flag, action="append" if several else "store", metavar=metavar, help=text)

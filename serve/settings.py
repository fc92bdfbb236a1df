"""Everything that an operator may set, as one typed object."""

from __future__ import annotations

import ipaddress
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from yolo_assigner.serve.engine.runners.choice import ENGINES
from yolo_assigner.serve.engine.runners.device import parse_device

MIB = 2**20
# Where memory is short, these defaults are such a part of it. What a request needs at most is 8 times its body, or 50
# times its JSON, and its work. The process that answers has only bodies and replies, less than half of the memory.
PARTS = {"max_request_bytes": 16, "max_json_bytes": 64, "max_work_bytes": 4, "max_total_bytes": 8}
LEAST_MEMORY = 256 * MIB  # defaults are never lower than for so much
UNIX = "unix"  # stands for callers of the Unix socket, which have no address
HOST_NAME = re.compile(r"[\w*.-]+", re.ASCII)
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([\w.-]+|\[[0-9a-f:.]+\])(:\d+)?", re.ASCII | re.IGNORECASE)
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]


def setting(default: Any, description: str, metavar: str | None = None) -> Any:
    """A field with what the command line shows of it."""
    return Field(default, description=description, json_schema_extra={"metavar": metavar} if metavar else None)


class Settings(BaseModel):
    """What the server does, from flags, environment and a file; see :mod:`yolo_assigner.serve.configuration`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    threads: int = Field(0, ge=0, description="threads of each model on a CPU, 0 for one per core")

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
    cuda_shared_memory: bool = setting(False, "take tensors from memory of GPUs that callers share by CUDA's handles")

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

    @field_validator("api_keys", "admin_keys", "allowed_host", "cors_origin", "trusted_proxy", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """From the environment several values come with commas between them."""
        return [key for key in value.split(",") if key] if isinstance(value, str) else value

    @field_validator("allowed_host")
    @classmethod
    def _names_alone(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not HOST_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no host name; write it without scheme and port, * for any characters")
        return tuple(name.lower() for name in names)

    @field_validator("trusted_proxy")
    @classmethod
    def _addresses_alone(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
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
    def _as_browsers_send_it(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; write it as browsers send it: https://example.com:8443")
        return tuple(origin.lower() for origin in origins)

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, engine: str) -> str:
        if engine not in ENGINES:
            raise ValueError(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
        return engine

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str | None) -> str | None:
        if device is not None:
            parse_device(device)
        return device

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.unix_socket is not None or is_loopback(self.host)

    @model_validator(mode="after")
    def _keys_beyond_loopback(self) -> Self:
        has_keys = bool(self.api_keys or self.api_key_file)
        if not (self.local or has_keys or self.insecure):
            raise ValueError(
                f"host {self.host} can be reached by others and there are no keys; give api_key_file, or say insecure "
                "where every caller is trusted"
            )
        return self

    @model_validator(mode="after")
    def _only_a_process_can_be_ended(self) -> Self:
        if self.engine_timeout and not self.engine_process:
            raise ValueError("engine_timeout ends the engines' process; leave engine_process as it is")
        return self

    @model_validator(mode="after")
    def _wait_for_somebody(self) -> Self:
        if self.batch_wait and self.batch_images == 1:
            raise ValueError("batch_wait does nothing alone; give batch_images, the most images of a call, too")
        return self

    @field_validator("engine_process")
    @classmethod
    def _only_on_linux(cls, value: bool) -> bool:
        if value and sys.platform != "linux":
            raise ValueError(f"{sys.platform} has no memory for it that two processes see; leave it out")
        return value

    @model_validator(mode="after")
    def _both_tls_files(self) -> Self:
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile go together; give both")
        return self


def defaults_for(memory: int) -> dict[str, int]:
    """The limits that follow the memory, where they are not given.

    Args:
        memory: Bytes that the server may have.

    Returns:
        By setting, bytes.
    """
    least = max(memory, LEAST_MEMORY)
    return {name: min(Settings.model_fields[name].default, least // part) for name, part in PARTS.items()}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. Names other than localhost may be anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

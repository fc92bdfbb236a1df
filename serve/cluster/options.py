"""Settings on their way to a cluster: what an application may be given, and what replicas and proxies make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import InitSettingsSource

from yolo_assigner.serve.settings import SECRETS, Configuration, Settings, defaults_for, explain
from yolo_assigner.serve.system import PREFIX, memory_limit

# Of the settings, those that Ray's proxies take from their environment.
PROXY_SETTINGS = (
    *("host", "insecure", "api_key_file", "admin_key_file"),
    *("max_request_bytes", "max_total_bytes", "max_requests"),
)
# In a cluster nobody can use them; the text is the remedy.
REFUSED = {
    "unix_socket": "Ray's proxies listen on an address; give host and port",
    "shared_memory": "a region would be registered at one replica of several; send tensors in the body",
    "metrics_port": "Ray collects metrics itself and shows them on each node's metrics port",
}
SOURCE = "args"


def arguments_of(configuration: Configuration) -> dict[str, Any]:
    """The settings that were given, as the arguments of an application: values of JSON, paths absolute.

    Raises:
        ValueError: One of them is of no use in a cluster, or secret: Ray shows arguments on its dashboard.
    """
    settings = configuration.settings
    given = {name: getattr(settings, name) for name in configuration.sources}
    check_arguments(given, configuration.sources)
    if settings.port == 0:
        raise ValueError("port 0: Ray's proxies need one that all callers know; choose a number")
    plain = settings.model_dump(mode="json", include=set(given))
    return plain | {name: str(value.resolve()) for name, value in given.items() if hasattr(value, "resolve")}


def check_arguments(given: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Refuse settings that a cluster has no use for.

    Args:
        given: Values by name.
        sources: Where each came from.

    Raises:
        ValueError: The text names the setting and the remedy.
    """
    for name in given:
        source = f"{name} ({sources.get(name, SOURCE)})"
        if name in REFUSED:
            raise ValueError(f"{source} cannot be used on Ray: {REFUSED[name]}")
        if name in SECRETS:
            raise ValueError(f"{source} would be seen on Ray's dashboard; name a file that every node has")


def replica_settings(arguments: Mapping[str, Any]) -> Settings:
    """Settings of an application and its replicas, from its arguments and not from the environment of a node.

    Models run in the replica's process unless ``engine_process`` says otherwise. Defaults that depend on the memory are
    those of a machine that all replicas share.

    Args:
        arguments: Settings by name.

    Raises:
        ValueError: They cannot be used; the text says which.
    """
    check_arguments(arguments, {})
    given = {"engine_process": False, **arguments, "ray": True}
    replicas = max(int(given.get("ray_replicas", 1)), int(given.get("ray_max_replicas") or 1))
    defaults = defaults_for(memory_limit().nbytes // replicas)
    sources = InitSettingsSource(Settings, given), InitSettingsSource(Settings, defaults)
    try:
        settings = Settings(_build_sources=(sources, {}))  # type: ignore[call-arg]
    except ValidationError as error:
        raise ValueError(explain(error, dict.fromkeys(given, SOURCE))) from error
    if not settings.threads:
        settings = settings.model_copy(update={"threads": max(int(settings.ray_cpus), 1)})
    return settings


def proxy_variables(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Variables of the environment that tell Ray's proxies an application's limits and keys."""
    given = {name: arguments[name] for name in PROXY_SETTINGS if name in arguments}
    return {f"{PREFIX}{name.upper()}": str(value) for name, value in given.items()}

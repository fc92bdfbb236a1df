"""Where settings come from: flags before environment before file before defaults."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from yolo_assigner.serve.engine.system import Memory, memory_limit
from yolo_assigner.serve.settings import PARTS, Settings, defaults_for

PREFIX = "YOLO_ASSIGNER_"
SECRETS = ("api_keys", "admin_keys", "ssl_keyfile_password")
HIDDEN = "********"


class Configuration(NamedTuple):
    """Settings and what gave them.

    Attributes:
        settings: The values.
        sources: By setting: ``flag``, a variable of the environment, or a file; the others are defaults.
        show: The caller wants them printed and nothing served.
        memory: What some defaults follow.
    """

    settings: Settings
    sources: dict[str, str]
    show: bool
    memory: Memory

    def source(self, name: str) -> str:
        """What gave a setting."""
        return self.sources.get(name, f"default for {self.memory}" if name in PARTS else "default")

    @property
    def limits(self) -> str:
        """The settings that follow the memory where they are not given, with what gave them."""
        return "; ".join(f"{name} = {getattr(self.settings, name)} ({self.source(name)})" for name in PARTS)


def read_settings(
    arguments: Sequence[str] | None, environment: Mapping[str, str], memory: Memory | None = None
) -> Configuration:
    """Collect the settings.

    Args:
        arguments: Command line without the program; the process's own when None.
        environment: Variables named ``YOLO_ASSIGNER_`` and the setting in capitals; ``YOLO_ASSIGNER_CONFIG`` names a
            TOML file, as ``--config`` does.
        memory: What the server may have; what the system says when None.

    Raises:
        ValueError: A value cannot be used; the text says where it came from.
        SystemExit: Help was asked for, or a flag is unknown.
    """
    flags = {name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    show = flags.pop("show_config")
    path = flags.pop("config", environment.get(f"{PREFIX}CONFIG"))
    names = {name: f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    variables = {name: environment[variable] for name, variable in names.items() if variable in environment}
    file = _read_file(Path(path)) if path else {}
    sources = {
        **dict.fromkeys(file, str(path)),
        **{name: names[name] for name in variables},
        **{name: f"--{name.replace('_', '-')}" for name in flags},
    }
    memory = memory or memory_limit()
    try:
        settings = Settings(**{**defaults_for(memory.nbytes), **file, **variables, **flags})
    except ValidationError as error:
        raise ValueError(_explain(error, sources)) from error
    return Configuration(settings, sources, show, memory)


def describe(configuration: Configuration) -> str:
    """The settings as TOML that can be used as a file, secrets hidden, each with its source."""
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


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"settings file {path} cannot be read: {error}") from error


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    """One line for each thing that is wrong, without the values of secrets."""
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

"""Parquet files that appear under their names only when they are complete, each with facts in its metadata."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

PARTIAL = ".partial"
_LIST = "[]"


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: Its name.
        kind: Name of its type in Arrow; ``int32[]`` is a list.
        meaning: For readers; in the file, too.
    """

    name: str
    kind: str
    meaning: str


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """Return a schema whose fields say what they mean."""
    return pa.schema([pa.field(c.name, _type(c.kind), metadata={"meaning": c.meaning}) for c in columns])


def write_parquet(target: Path, table: pa.Table, key: bytes, facts: Mapping[str, Any]) -> None:
    """Write a file, which appears complete or not at all: it is written beside and renamed.

    Args:
        target: The file.
        table: Its rows.
        key: Name of the metadata.
        facts: The metadata, plain types.

    Raises:
        OSError: It cannot be written.
    """
    table = table.replace_schema_metadata({key: json.dumps(facts).encode()})
    target.parent.mkdir(parents=True, exist_ok=True)
    # Machines and processes that happen to compute the same shard do not write into each other's file.
    partial = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_metadata(path: Path, key: bytes) -> dict[str, Any] | None:
    """Read the facts that a file was written with; None: there is no such file, or it has none of this name."""
    try:
        facts = json.loads(pq.read_schema(path).metadata[key])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def remove_partial(folder: Path) -> None:
    """Remove what processes of this machine that were killed left half written in a folder and those below."""
    for path in folder.rglob(f".*.{socket.gethostname()}.*{PARTIAL}"):
        process = path.name.removesuffix(PARTIAL).rpartition(".")[2]
        if process.isdecimal() and not _runs(int(process)):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it runs, for somebody else
    return True


def _type(kind: str) -> pa.DataType:
    if kind.endswith(_LIST):
        return pa.list_(_type(kind.removesuffix(_LIST)))
    return {"string": pa.string(), "int32": pa.int32(), "float": pa.float32(), "bool": pa.bool_()}[kind]

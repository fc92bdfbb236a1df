"""Request files: the service's own request, as npz or safetensors."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("batch_idx", "cls", "bboxes")
READABLE = (".npz", ".safetensors")


class RequestFile(NamedTuple):
    """What a request file holds.

    Attributes:
        feats: One map (B, 4R + C, H_i, W_i) per stride, float32.
        batch: ``batch_idx`` (T,), ``cls`` (T,) and ``bboxes`` (T, 4).
        names: Names of the pictures by image; empty where the file gives none.
    """

    feats: list[NDArray[np.float32]]
    batch: dict[str, NDArray[Any]]
    names: tuple[str, ...] = ()


def read_request(path: Path) -> RequestFile:
    """Read a request file.

    Args:
        path: ``.npz`` or ``.safetensors`` with ``feat_0``, ``feat_1``, ..., ``batch_idx``, ``cls`` and ``bboxes``, and
            optionally ``names``.

    Raises:
        OSError: It cannot be read.
        ValueError: It is of another type, or an array is missing.
    """
    arrays = _read(path)
    feats: list[NDArray[np.float32]] = []
    while (name := f"feat_{len(feats)}") in arrays:
        feats.append(np.asarray(arrays[name], np.float32))
    missing = [name for name in ("feat_0", *COLUMNS) if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; a request file holds feat_0, feat_1, ... and {', '.join(COLUMNS)}"
        )
    batch = {name: arrays[name] for name in COLUMNS}
    return RequestFile(feats, batch, tuple(str(name) for name in arrays.get("names", ())))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    match path.suffix:
        case ".npz":
            try:
                # Opened here: where numpy fails it leaves its own file open.
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    return {name: stored[name] for name in stored.files}
            except zipfile.BadZipFile as error:
                raise ValueError(f"{path} is no npz file ({error}); write it with numpy.savez") from error
        case ".safetensors":
            return _read_safetensors(path)
    raise ValueError(f"{path} is no request file; give one that ends in {' or '.join(READABLE)}")


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        from safetensors.numpy import load
    except ModuleNotFoundError as error:
        raise ValueError(f"reading {path} needs safetensors; pip install safetensors, or give an npz file") from error
    found: dict[str, NDArray[Any]] = load(path.read_bytes())
    return found

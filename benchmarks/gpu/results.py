"""Results in one JSON file, written after each unit of work, so that a crash loses nothing that was measured.

The file has one entry for each set of code, device and packages. Under another set an entry is added, and what was
measured before stays.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.report import processor
from yolo_assigner.export.contract import write_json

Entry = dict[str, Any]
STARTED = "its process ended in it, or it hung"
ROOT = Path(__file__).parents[2]
PACK = ROOT / ".gpu"  # what `python -m benchmarks.gpu.pack` makes, to be carried to the machine with the GPU
# The code that decides the figures, and the packages.
SOURCES = (
    *("yolo_loss", "export", "serve/inference/runners"),
    *("benchmarks/contenders.py", "benchmarks/common/inputs.py", "benchmarks/gpu"),
)
PACKAGES = ("torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "ultralytics")


class Results:
    """The file of results, and in it the entry of one key.

    Args:
        path: The file, which is read if it exists.
        key: Code, device and versions that figures depend on.

    Attributes:
        entries: Figures of this key by the units' names. One without figures has a ``reason``; where that is a failure
            also ``failed``, and ``broke`` where the device or the process was unusable afterwards.
        others: Entries by the other keys as JSON, the oldest first.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path, self._key = path, dict(key)
        self.reload()

    def reload(self) -> None:
        """Read what another process has written."""
        try:
            runs = json.loads(self._path.read_text(encoding="utf-8"))["runs"] if self._path.exists() else []
            self.others: dict[str, dict[str, Entry]] = {json.dumps(run["key"]): run["entries"] for run in runs}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path} is no file of results ({error!r}); move it or name another") from error
        self.entries: dict[str, Entry] = self.others.pop(json.dumps(self._key), {})

    def begin(self, name: str, contender: str) -> None:
        """Record a unit as broken before it runs: so it remains if its process dies."""
        self.keep(name, {"contender": contender, "reason": STARTED, "failed": True, "broke": True})

    def keep(self, name: str, entry: Entry) -> None:
        """Record the entry of a unit that has ended."""
        self.entries[name] = entry
        self._write()

    def drop_unfinished(self) -> None:
        """Forget a unit that was stopped for lack of time."""
        self.entries = {name: entry for name, entry in self.entries.items() if entry.get("reason") != STARTED}
        self._write()

    def broken(self) -> dict[str, str]:
        """Contenders that broke the device or their process, with the unit in which they did."""
        return {entry["contender"]: name for name, entry in self.entries.items() if entry.get("broke")}

    def retry(self, again: Collection[str]) -> None:
        """Drop entries without figures, so that they are tried anew; of those that broke something only ``again``."""
        self.entries = {
            name: entry
            for name, entry in self.entries.items()
            if "reason" not in entry or (entry.get("broke") and entry["contender"] not in again)
        }
        self._write()

    def _write(self) -> None:
        runs = [{"key": json.loads(key), "entries": entries} for key, entries in self.others.items()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {"runs": [*runs, {"key": self._key, "entries": self.entries}]})


def key_of(device: torch.device) -> dict[str, Any]:
    """Facts that figures must have in common to be set beside each other."""
    # The first of two installations is the one that is imported.
    installed = {found.name: found.version for found in reversed(list(distributions()))}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "CUDA": torch.version.cuda,
        **{package: installed[package] for package in PACKAGES if package in installed},
        "Python": platform.python_version(),
        "code": code_hash(),
    }


def describe(device: torch.device) -> dict[str, Any]:
    """Facts for the table."""
    return {**key_of(device), "commit": commit(), "date": time.strftime("%Y-%m-%d")}


def commit() -> str:
    """Short hash of the checkout's commit, that of the pack where git is missing, or ``not known``."""
    packed = PACK / "commit"
    known = output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return known or (packed.read_text(encoding="ascii").strip() if packed.exists() else "not known")


def output(*words: str) -> str:
    """What a command prints, or nothing where it fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def code_hash(root: Path = ROOT, sources: Sequence[str] = SOURCES) -> str:
    """Hash of source files.

    Args:
        root: Folder of the checkout.
        sources: Files and folders in it.

    Raises:
        FileNotFoundError: One of them was moved.
    """
    digest = hashlib.sha256()
    for source in sources:
        for file in sorted((root / source).rglob("*.py")) or [root / source]:
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]

"""The machine, the versions and the code that the figures depend on."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.report import processor

ROOT = Path(__file__).parent.parent.parent
# What `python -m benchmarks.gpu.pack` makes, to be carried to the machine with the GPU.
PACK = ROOT / ".gpu"
# The code that decides the figures.
SOURCES = (
    "yolo_loss",
    "export",
    "serve/inference/runners",
    "benchmarks/contenders.py",
    "benchmarks/common/inputs.py",
    "benchmarks/gpu",
)
PACKAGES = ("torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "ultralytics")


def key_of(device: torch.device, quick: bool) -> dict[str, Any]:
    """Facts that figures must have in common to be set beside each other."""
    facts = {"code": code_hash(), "device": device_name(device), "CUDA": torch.version.cuda, "versions": versions()}
    return {**facts, "quick": quick}


def describe(device: torch.device) -> dict[str, Any]:
    """Facts for the table."""
    found: dict[str, Any] = {"device": device_name(device), "driver": driver(), "CUDA": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "compute capability": f"{properties.major}.{properties.minor}",
            "memory, GiB": round(properties.total_memory / 2**30, 1),
            "second-level cache, MiB": round(properties.L2_cache_size / 2**20, 1),
        }
    found |= {**versions(), "Python": platform.python_version()}
    return {**found, "commit": commit(), "code": code_hash(), "date": time.strftime("%Y-%m-%d")}


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def driver() -> str:
    """Version of NVIDIA's driver, or ``not known``."""
    return output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "not known"


def versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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

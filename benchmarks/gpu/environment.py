"""The machine, the versions and the code that the figures depend on."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.report import processor

ROOT = Path(__file__).parent.parent.parent
# The code that decides the figures. A change of the modules that only keep or print them leaves figures valid.
SOURCES = (
    *("yolo_loss", "export", "serve/inference/runners", "benchmarks/gpu", "benchmarks/contenders.py"),
    "benchmarks/common/timing.py",
)
NOT_COUNTED = tuple(f"benchmarks/gpu/{name}.py" for name in ("__main__", "goals", "report", "runner", "store"))
PACKAGES = (
    *("torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx_cu13_libs"),
    *("cuda-bindings", "ultralytics"),
)


def key_of(device: torch.device, quick: bool) -> dict[str, Any]:
    """Facts that results must have in common to stand in one table."""
    return {
        "code": code_hash(),
        "device": device_name(device),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "quick": quick,
    }


def describe(device: torch.device) -> dict[str, Any]:
    """Facts for the table."""
    facts: dict[str, Any] = {"device": device_name(device), "driver": driver(), "CUDA": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "compute capability": f"{properties.major}.{properties.minor}",
            "memory, GiB": round(properties.total_memory / 2**30, 1),
            "second-level cache, MiB": round(properties.L2_cache_size / 2**20, 1),
        }
    return {
        **facts,
        **versions(),
        "Python": platform.python_version(),
        "commit": commit(),
        "code": code_hash(),
        "date": time.strftime("%Y-%m-%d"),
    }


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def driver() -> str:
    """Version of NVIDIA's driver, or ``not known``."""
    path = Path("/proc/driver/nvidia/version")
    try:
        return path.read_text(encoding="utf-8").splitlines()[0].split("  ")[1].strip()
    except (OSError, IndexError):
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "not known"


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
    """Short hash of the checkout's commit, or ``not known``."""
    return _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "not known"


def code_hash(root: Path = ROOT) -> str:
    """Hash of the source files that decide the figures.

    Args:
        root: Folder of the checkout.

    Raises:
        FileNotFoundError: One of ``SOURCES`` or ``NOT_COUNTED`` was moved.
    """
    for source in (*SOURCES, *NOT_COUNTED):
        if not (root / source).exists():
            raise FileNotFoundError(f"{source} is not in {root}; correct its name in benchmarks/gpu/environment.py")
    digest = hashlib.sha256()
    for source in SOURCES:
        path = root / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            name = file.relative_to(root).as_posix()
            if name not in NOT_COUNTED:
                digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _output(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""

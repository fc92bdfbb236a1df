"""Timings of kernels, kept from one build to the next. TensorRT-RTX times nothing and keeps none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_assigner.export.tensorrt_build.files import write_whole

# TensorRT-RTX ignores a cache, and would want a GPU when it is given one.
KEPT_BY = ("tensorrt",)


def use_timings(config: Any, path: Path) -> None:
    """Give a configuration the timings of a file, or none where it is missing or of another version or GPU.

    Args:
        config: TensorRT's.
        path: The file.
    """
    content = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(content), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep_timings(config: Any, path: Path) -> None:
    """Write a configuration's timings after a build.

    Args:
        config: TensorRT's.
        path: The file, replaced whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, memoryview(config.get_timing_cache().serialize()))

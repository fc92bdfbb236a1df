"""Versions of ONNX Runtime that run the exported models."""

from __future__ import annotations

import re

OLDEST_ONNX_RUNTIME = "1.22"  # the lower bound in pyproject.toml


def why_unsupported(version: str) -> str | None:
    """Compare a version of ONNX Runtime with the oldest supported one.

    Args:
        version: Value of ``onnxruntime.__version__``; a development build counts as its release.

    Returns:
        The reason and the remedy, or None if the version is supported.
    """
    oldest = OLDEST_ONNX_RUNTIME
    if _release(version) >= _release(oldest):
        return None
    return (
        f"ONNX Runtime {version} is not supported, the oldest supported version is {oldest}; "
        f"install a newer one: pip install 'onnxruntime>={oldest}', or 'onnxruntime-gpu>={oldest}' for a GPU"
    )


def _release(version: str) -> tuple[int, ...]:
    """Parse the release: (1, 33, 0) for 1.33.0.dev2026 and 1.33.0+cu12, () for text without a number."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()

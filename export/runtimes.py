"""Which versions of ONNX Runtime run the exported models."""

from __future__ import annotations

import re

OLDEST_ONNX_RUNTIME = "1.22"  # the lower bound in pyproject.toml


def why_unsupported(version: str) -> str | None:
    """Compare a version of ONNX Runtime with the oldest supported one.

    Args:
        version: As ``onnxruntime.__version__`` has it; a development build counts as its release.

    Returns:
        The reason and the remedy; None when the version is supported.
    """
    oldest = OLDEST_ONNX_RUNTIME
    if _numbers(version) >= _numbers(oldest):
        return None
    return (
        f"ONNX Runtime {version} is not supported, the oldest supported version is {oldest}; "
        f"install a newer one: pip install 'onnxruntime>={oldest}', or 'onnxruntime-gpu>={oldest}' for a GPU"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The release: 1.33.0.dev2026 and 1.33.0+cu12 are both (1, 33, 0); what has no number is older than all."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()

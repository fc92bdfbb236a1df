"""The GPU that is there."""

from __future__ import annotations

from typing import Any

from yolo_assigner.export.tensorrt_build.log import BuildError


def current_capability() -> str:
    """Compute capability of the current GPU, for example ``8.9``.

    Raises:
        BuildError: CUDA's bindings, a driver or a GPU is missing.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BuildError(f"CUDA's bindings do not import ({error}); pip install cuda-bindings") from error
    device = _value(*runtime.cudaGetDevice())
    attributes = runtime.cudaDeviceAttr
    parts = (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor)
    return ".".join(str(_value(*runtime.cudaDeviceGetAttribute(part, device))) for part in parts)


def _value(status: Any, value: Any) -> Any:
    if int(status):
        raise BuildError(
            f"no GPU can be used ({status.name}); see whether nvidia-smi lists one and the driver is new enough"
        )
    return value

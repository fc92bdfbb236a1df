"""Configuration of TensorRT's builder: sizes, hardware, and arithmetic in the types of the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.export.to_tensorrt.contract import Profile, profile_words
from yolo_assigner.export.to_tensorrt.log import BuildError, BuildLog


def capability_members(library: Any, capabilities: Sequence[str]) -> list[Any]:
    """Convert compute capabilities, for example ``8.9``, to members of the library's enumeration.

    Raises:
        ValueError: The library builds for the GPU that it finds, or a capability is unknown.
    """
    if not capabilities:
        return []
    if not hasattr(library.IBuilderConfig, "num_compute_capabilities"):
        raise ValueError(
            "TensorRT builds for the GPU of the machine it runs on, not for compute capability "
            f"{' and '.join(capabilities)}; build there without --compute-capability, or with --runtime tensorrt-rtx"
        )
    members = library.ComputeCapability.__members__.items()
    known = {f"{name[2:-1]}.{name[-1]}": member for name, member in members if name.startswith("SM")}
    for capability in capabilities:
        if capability not in known:
            raise ValueError(
                f"compute capability {capability!r} is unknown to TensorRT-RTX; choose among {', '.join(known)}"
            )
    return [known[capability] for capability in capabilities]


def make_config(library: Any, builder: Any, capabilities: Sequence[Any]) -> Any:
    """Create a configuration without profiles for members of ``capability_members``; none for the default."""
    config = builder.create_builder_config()
    # TF32 is on by default and rounds factors to 10 bits, so decisions could differ from those of other runtimes.
    config.clear_flag(library.BuilderFlag.TF32)
    # Without it 0 * NaN becomes 0, which hides that a detector diverged.
    config.set_flag(library.BuilderFlag.STRICT_NANS)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(capability, index)
    return config


def add_profiles(
    builder: Any, config: Any, specs: Sequence[TensorSpec], profiles: Sequence[Profile], log: BuildLog
) -> None:
    """Add one optimization profile for each entry of ``profiles``.

    Raises:
        BuildError: TensorRT rejects a profile.
    """
    for index, profile in enumerate(profiles):
        if config.add_optimization_profile(make_profile(builder, specs, profile)) != index:
            raise log.failure(f"TensorRT refuses the profile {' '.join(profile_words(profile))}:")


def make_profile(builder: Any, specs: Sequence[TensorSpec], profile: Profile) -> Any:
    """Create an optimization profile with the shapes of every input."""
    shapes = builder.create_optimization_profile()
    for spec in specs:
        axes = (profile[axis] if isinstance(axis, str) else (axis, axis, axis) for axis in spec.axes)
        shapes.set_shape(spec.name, *zip(*axes, strict=True))
    return shapes


def current_capability() -> str:
    """Return the compute capability of the current GPU, for example ``8.9``.

    Raises:
        BuildError: CUDA's bindings, the driver or a GPU is missing.
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

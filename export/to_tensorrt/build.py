"""Building a TensorRT engine from an exported model, with its contract beside it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from yolo_assigner.export.contract import ENGINE_SUFFIX
from yolo_assigner.export.to_tensorrt.config import add_profiles, capability_members, current_capability, make_config
from yolo_assigner.export.to_tensorrt.contract import EngineContract, Profile, engine_stem
from yolo_assigner.export.to_tensorrt.library import load_library
from yolo_assigner.export.to_tensorrt.log import BuildError, BuildLog, make_logger
from yolo_assigner.export.to_tensorrt.network import (
    Source,
    check_hardware,
    check_tensors,
    narrow_source,
    parse_network,
    read_source,
)
from yolo_assigner.export.to_tensorrt.profiles import ProfileRequest, default_profile, resolve_profile
from yolo_assigner.export.to_tensorrt.progress import BuildWatch, Progress, make_monitor

__all__ = ["BuildError", "build_engine"]


def build_engine(
    model: Path,
    out: Path,
    *,
    runtime: str,
    precision: str | None = None,
    profiles: Sequence[ProfileRequest] = (),
    timing_cache: Path | None = None,
    compute_capabilities: Sequence[str] = (),
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> tuple[Path, EngineContract]:
    """Write ``NAME.RUNTIME.PRECISION.engine`` and its contract.

    Both are replaced only by whole files. Arithmetic in float32 is never rounded to TF32, and not-a-number passes.

    Args:
        model: ONNX file that ``yolo-assigner export onnx`` wrote, its contract beside it.
        out: Folder, made when it is not there.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        precision: ``fp16`` or ``bf16`` for an engine that takes predictions in that type, ``fp32``; the one that the
            model was exported in when None.
        profiles: Sizes to build for, one request per optimisation profile; the default one when empty.
        timing_cache: File of kernel timings, read where it is there and written anew. Not used by ``tensorrt-rtx``.
        compute_capabilities: GPUs to build for, only with ``tensorrt-rtx``; its portable default when empty.
        progress: Shows how far the build is.
        warn: Called with each of TensorRT's warnings.

    Returns:
        Path of the engine and its contract.

    Raises:
        ContractError: The model is missing, not the one its contract describes, or its tensors are not.
        ValueError: An option is unusable with this model or library, or the library is not installed.
        BuildError: TensorRT refuses the graph or fails, or ``tensorrt`` finds no GPU.
        KeyboardInterrupt: The user ended the build; nothing is written.
    """
    source = read_source(model)
    sizes = tuple(resolve_profile(request, source.contract) for request in profiles or (default_profile(),))
    library = load_library(runtime)
    capabilities = tuple(dict.fromkeys(compute_capabilities))
    capability_members(library, capabilities)
    # The other library builds for the GPU that it finds.
    targets = capabilities if runtime == "tensorrt-rtx" else (current_capability(),)

    started = time.perf_counter()
    narrowed = narrow_source(source, precision)
    wishes = Wishes(sizes, capabilities, timing_cache if runtime in KEPT_BY else None)
    plan = build_plan(library, narrowed, wishes, BuildWatch(progress), BuildLog(warn))
    engine = EngineContract(
        name=source.contract.name,
        file=f"{engine_stem(source.contract.name, runtime, narrowed.contract.precision)}.engine",
        sha256=hashlib.sha256(plan).hexdigest(),
        model_file=source.contract.file,
        model_sha256=source.contract.sha256,
        runtime=runtime,
        runtime_version=library.__version__,
        compute_capabilities=targets,
        precision=narrowed.contract.precision,
        profiles=sizes,
        inputs=narrowed.contract.inputs,
        outputs=narrowed.contract.outputs,
        build_seconds=round(time.perf_counter() - started, 3),
    )
    return _write(out, plan, engine), engine


def _write(out: Path, plan: memoryview, engine: EngineContract) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / engine.file
    # Interrupted between the two, the new engine has not the hash that the old contract names.
    write_whole(path, plan)
    engine.save(path.with_name(f"{path.stem}{ENGINE_SUFFIX}"))
    return path


class Wishes(NamedTuple):
    """How an engine is to be built.

    Attributes:
        profiles: Sizes, one optimisation profile each.
        capabilities: Compute capabilities; none for what the library builds for by itself.
        timings: File of kernel timings, or None.
    """

    profiles: tuple[Profile, ...]
    capabilities: tuple[str, ...] = ()
    timings: Path | None = None


def build_plan(library: Any, source: Source, wishes: Wishes, watch: BuildWatch, log: BuildLog) -> memoryview:
    """Build.

    Args:
        library: The module of TensorRT or TensorRT-RTX.
        source: The model.
        wishes: How.
        watch: Told of the progress; what it failed with is raised.
        log: Told of what TensorRT says.

    Raises:
        ContractError: The network's tensors are not those of the contract.
        ValueError: The library cannot build for one of the compute capabilities.
        BuildError: TensorRT refuses the graph or fails.
        KeyboardInterrupt: The user ended it.
    """
    targets = capability_members(library, wishes.capabilities)
    logger = make_logger(library, log)
    try:
        builder = library.Builder(logger)
    except (TypeError, RuntimeError) as error:  # TensorRT gave no builder, where there is no GPU for example
        raise log.failure(f"TensorRT cannot start here ({error}):") from error
    network = parse_network(library, builder, logger, source, log)
    check_tensors(network, source.contract)
    check_hardware(library, network, wishes.capabilities)
    config = make_config(library, builder, targets)
    add_profiles(builder, config, source.contract.inputs, wishes.profiles, log)
    if wishes.timings:
        use_timings(config, wishes.timings)
    monitor = make_monitor(library, watch)
    config.progress_monitor = monitor
    plan = _build(builder, network, config, watch)
    if plan is None:
        raise log.failure(f"TensorRT builds no engine of {source.contract.file}:")
    if wishes.timings:
        keep_timings(config, wishes.timings)
    return memoryview(plan)


def _build(builder: Any, network: Any, config: Any, watch: BuildWatch) -> Any:
    # Python acts on signals in its main thread only, and not while that is inside TensorRT.
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(builder.build_serialized_network, network, config)
        try:
            plan = future.result()
        except KeyboardInterrupt:
            watch.cancel()
            raise
    if watch.failure:
        raise watch.failure
    return plan


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


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write through a temporary file beside it, so that no half of one is ever seen or left."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

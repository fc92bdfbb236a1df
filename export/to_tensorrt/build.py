"""Build a TensorRT engine from an exported model, with a contract beside it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from yolo_assigner.export.contract import ENGINE_SUFFIX, write_atomically
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

# Runtimes with a timing cache. TensorRT-RTX ignores one, and would need a GPU to create it.
RUNTIMES_WITH_TIMING_CACHE = ("tensorrt",)


class BuildOptions(NamedTuple):
    """How an engine is built.

    Attributes:
        profiles: Sizes of the dynamic axes, one optimization profile each.
        capabilities: Compute capabilities to build for; empty for the library's default.
        timing_cache: File of kernel timings, or None.
    """

    profiles: tuple[Profile, ...]
    capabilities: tuple[str, ...]
    timing_cache: Path | None


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
    """Build and write ``NAME.RUNTIME.PRECISION.engine`` and its contract, each atomically.

    Float32 arithmetic is never rounded to TF32, and NaN propagates.

    Args:
        model: ONNX file that ``yolo-assigner export onnx`` wrote, its contract beside it.
        out: Output folder, created if missing.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        precision: ``fp16`` or ``bf16`` for an engine that takes predictions in that type, or ``fp32``; the model's own
            if None.
        profiles: Sizes to build for, one request per optimization profile; the default profile if empty.
        timing_cache: File of kernel timings, read if it exists and then updated. Not used by ``tensorrt-rtx``.
        compute_capabilities: GPUs to build for, only with ``tensorrt-rtx``; its portable default if empty.
        progress: Display of the build's progress.
        warn: Called with each warning of TensorRT.

    Returns:
        Path of the engine and its contract.

    Raises:
        ContractError: The model is missing, or does not match its contract.
        ValueError: An option is unusable with this model or library, or the library is not installed.
        BuildError: TensorRT rejects the graph or fails, or ``tensorrt`` finds no GPU.
        KeyboardInterrupt: The user ended the build; nothing is written.
    """
    source = read_source(model)
    sizes = tuple(resolve_profile(request, source.contract) for request in profiles or (default_profile(),))
    library = load_library(runtime)
    capabilities = tuple(dict.fromkeys(compute_capabilities))
    capability_members(library, capabilities)
    # TensorRT builds for the GPU of this machine.
    targets = capabilities if runtime == "tensorrt-rtx" else (current_capability(),)

    started = time.perf_counter()
    narrowed = narrow_source(source, precision)
    options = BuildOptions(sizes, capabilities, timing_cache if runtime in RUNTIMES_WITH_TIMING_CACHE else None)
    plan = _build_plan(library, narrowed, options, BuildWatch(progress), BuildLog(warn))
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
    out.mkdir(parents=True, exist_ok=True)
    path = out / engine.file
    # The engine is written first: if the build ends in between, the old contract's hash shows the mismatch.
    write_atomically(path, plan)
    engine.save(path.with_name(f"{path.stem}{ENGINE_SUFFIX}"))
    return path, engine


def _build_plan(library: Any, source: Source, options: BuildOptions, watch: BuildWatch, log: BuildLog) -> memoryview:
    targets = capability_members(library, options.capabilities)
    logger = make_logger(library, log)
    try:
        builder = library.Builder(logger)
    except (TypeError, RuntimeError) as error:  # for example without a GPU
        raise log.failure(f"TensorRT cannot start here ({error}):") from error
    network = parse_network(library, builder, logger, source, log)
    check_tensors(network, source.contract)
    check_hardware(library, network, options.capabilities)
    config = make_config(library, builder, targets)
    add_profiles(builder, config, source.contract.inputs, options.profiles, log)
    if options.timing_cache:
        use_timings(config, options.timing_cache)
    monitor = make_monitor(library, watch)
    config.progress_monitor = monitor
    plan = _run(builder, network, config, watch)
    if plan is None:
        raise log.failure(f"TensorRT builds no engine of {source.contract.file}:")
    if options.timing_cache:
        keep_timings(config, options.timing_cache)
    return memoryview(plan)


def _run(builder: Any, network: Any, config: Any, watch: BuildWatch) -> Any:
    # Python handles signals in its main thread only, and not while that thread is inside TensorRT.
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


def use_timings(config: Any, path: Path) -> None:
    """Load a file of kernel timings into a configuration; a missing or foreign file counts as an empty one."""
    content = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(content), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep_timings(config: Any, path: Path) -> None:
    """Write the kernel timings of a configuration after a build, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, memoryview(config.get_timing_cache().serialize()))

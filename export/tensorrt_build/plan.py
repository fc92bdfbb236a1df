"""From a model to the bytes of an engine, which TensorRT calls a plan."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from yolo_assigner.export.engine_contract import Profile
from yolo_assigner.export.tensorrt_build.config import add_profiles, capability_members, make_config
from yolo_assigner.export.tensorrt_build.log import BuildLog, make_logger
from yolo_assigner.export.tensorrt_build.network import check_hardware, check_tensors, parse_network
from yolo_assigner.export.tensorrt_build.progress import BuildWatch, make_monitor
from yolo_assigner.export.tensorrt_build.source import Source
from yolo_assigner.export.tensorrt_build.timing import keep_timings, use_timings


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

"""Building a TensorRT engine from an exported model, with its contract beside it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from yolo_assigner.export.contract import ENGINE_SUFFIX
from yolo_assigner.export.engine_contract import EngineContract, engine_stem
from yolo_assigner.export.profiles import ProfileRequest, default_profile, resolve_profile
from yolo_assigner.export.tensorrt_build.config import capability_members
from yolo_assigner.export.tensorrt_build.device import current_capability
from yolo_assigner.export.tensorrt_build.files import write_whole
from yolo_assigner.export.tensorrt_build.library import load_library
from yolo_assigner.export.tensorrt_build.log import BuildError, BuildLog
from yolo_assigner.export.tensorrt_build.plan import Wishes, build_plan
from yolo_assigner.export.tensorrt_build.progress import BuildWatch, Progress
from yolo_assigner.export.tensorrt_build.source import narrow_source, read_source
from yolo_assigner.export.tensorrt_build.timing import KEPT_BY

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

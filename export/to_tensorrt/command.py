"""``yolo-assigner export tensorrt``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from yolo_assigner.export.contract import PRECISIONS, SPARSE_KINDS, load_contract
from yolo_assigner.export.to_tensorrt.contract import RUNTIMES, EngineContract, profile_words, target_text

SUMMARY = "build a TensorRT engine of a dense model, as `export onnx --for tensorrt` writes it"
EXAMPLES = """\
  yolo-assigner export tensorrt dense/loss.onnx
  yolo-assigner export tensorrt dense/loss.onnx --runtime tensorrt-rtx --profile B=1,16,64 M=0,32,300 imgsz=640"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="the exported model, its contract beside it")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for engine and contract; the model's by default"
    )
    parser.add_argument("--runtime", choices=RUNTIMES, help="runtime to build for; by default the first one installed")
    parser.add_argument("--precision", choices=PRECISIONS, help="of predictions and images; the model's by default")
    parser.add_argument(
        "--profile",
        nargs="+",
        action="append",
        default=[],
        metavar="AXIS=MIN,OPT,MAX",
        help="sizes to build for; by default B=1,16,64 M=0,32,300 imgsz=640. One number is all three, imgsz=384x640 "
        "is height and width; the assigner has C, and A in place of imgsz. Given again, a further profile",
    )
    parser.add_argument(
        "--compute-capability", nargs="+", default=[], metavar="8.9", help="GPUs to build for, with tensorrt-rtx"
    )
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="keeps timings for later builds, with tensorrt"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--verbose", action="store_true", help="show TensorRT's warnings")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Build an engine; 0 when the files are written."""
    from yolo_assigner.export.to_tensorrt.build import RUNTIMES_WITH_TIMING_CACHE, build_engine
    from yolo_assigner.export.to_tensorrt.library import default_runtime
    from yolo_assigner.export.to_tensorrt.profiles import parse_profile
    from yolo_assigner.export.to_tensorrt.progress import progress_display

    _check_implementation(options.model)
    runtime = options.runtime or default_runtime()
    profiles = [parse_profile(words) for words in options.profile]
    if options.timing_cache and runtime not in RUNTIMES_WITH_TIMING_CACHE:
        print(f"note: {runtime} keeps no timings, {options.timing_cache} is not used", file=sys.stderr)
    print(f"building {options.model} for {runtime} ...", flush=True)
    with contextlib.closing(progress_display(sys.stderr)) as display:
        path, engine = build_engine(
            options.model,
            options.out or options.model.parent,
            runtime=runtime,
            precision=options.precision,
            profiles=profiles,
            timing_cache=options.timing_cache,
            compute_capabilities=options.compute_capability,
            progress=None if options.quiet else display,
            warn=_warn if options.verbose else None,
        )
    print(describe(path, engine))
    return 0


def _check_implementation(model: Path) -> None:
    from yolo_assigner.export.to_onnx.command import export_command

    path = model.with_suffix(".json")
    if not path.is_file():  # as the build will say
        return
    contract = load_contract(path)
    if contract.kind in SPARSE_KINDS:
        raise ValueError(
            f"{model} is of kind {contract.kind}, which lists candidate pairs, and TensorRT has no lists; serve the "
            "ONNX file, with ONNX Runtime"
        )
    if contract.formulation != "dense":
        command = export_command(contract, "tensorrt", f"{contract.name}-dense", model.parent)
        raise ValueError(
            f"{model} has the {contract.formulation} implementation, which TensorRT cannot express; make one that it "
            f"can with `{command}`"
        )


def describe(path: Path, engine: EngineContract) -> str:
    """Describe in a few lines what was built."""
    profiles = (f"  sizes {' '.join(profile_words(profile))}" for profile in engine.profiles)
    return "\n".join(
        [
            f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB) and its contract in {engine.build_seconds:.1f} s",
            *profiles,
            f"  for {engine.runtime} {engine.runtime_version} on compute capability {target_text(engine)}",
        ]
    )


def _warn(text: str) -> None:
    print(f"TensorRT: {text}", file=sys.stderr)

"""The command ``yolo-assigner audit``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from yolo_assigner.audit.options import (
    add_shared_arguments,
    check_folder,
    check_positive,
    loss_options,
    make_parser,
    manner_of,
    run_command,
    tell_bad,
)
from yolo_assigner.audit.runner import Task, compute_shards
from yolo_assigner.audit.structures import Changes, Settings, ShardFacts, Source

EXAMPLES = """\
examples:
  yolo-assigner audit --weights best.safetensors --data datasets/trees --out audit
  yolo-assigner audit --weights best.safetensors --data instances.json --images pictures --imgsz 1280 --out audit
  yolo-assigner audit --predictions maps --out audit

files in the folder of --out:
  truths/        a Parquet table with a row for every object
  summary.json   counts
  report.html    counts and the worst objects with thumbnails; opens without a server

An interrupted audit goes on where it was when the same command runs again.
Exit code: 0; 1 if files of the set cannot be used; 2 if arguments or weights are unusable; 130 if interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit a data set.

    Args:
        arguments: Words after ``yolo-assigner audit``; those of the process when None.

    Returns:
        The exit code that the command's help describes.
    """
    return run_command(_audit, build_parser().parse_args(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = make_parser("audit", "Explain why the objects of a data set are learned or not.", EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="PATH", help="folder with images/ and labels/, or a COCO json")
    source.add_argument("--predictions", type=Path, metavar="DIR", help="folder with stored maps and ground truth")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the detector's state dict, for --data")
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures of a COCO json or of --predictions")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for table, summary and report")
    parser.add_argument("--imgsz", type=int, default=640, metavar="PIXELS", help="square that pictures are fitted into")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pictures that the detector sees at once")
    parser.add_argument("--shard-size", type=int, default=256, metavar="N", help="pictures of one file of the table")
    parser.add_argument("--worst", type=int, default=100, metavar="N", help="objects that the report shows")
    add_shared_arguments(parser, "of --predictions; a detector's follows from its weights")
    tried = parser.add_argument_group("what would help", "computed beside; by default chosen from strides and --imgsz")
    tried.add_argument("--try-min-box-side", type=float, metavar="PIXELS", help="another min_box_side")
    tried.add_argument("--try-imgsz", type=int, metavar="PIXELS", help="another input size")
    return parser


def _audit(options: argparse.Namespace) -> int:
    # Imported here: the help needs none of them.
    from yolo_assigner.audit.sources import find_predictions, find_source

    _check(options)
    if options.data is not None:
        source = find_source(options.data, options.images)
    else:
        source = find_predictions(options.predictions, options.images)
    settings = _settings(options)
    facts = _run_shards(source, settings, options)
    return _report(source, facts, options)


def _check(options: argparse.Namespace) -> None:
    check_positive(options, ["imgsz", "batch", "shard_size"])
    if options.data is not None and options.weights is None:
        raise ValueError("--data needs a detector; give its state dict as --weights, or stored maps as --predictions")
    if options.predictions is not None and options.weights is not None:
        raise ValueError(f"--weights is {options.weights}, but --predictions holds the maps; leave --weights out")


def _settings(options: argparse.Namespace) -> Settings:
    """Check weights and hyper-parameters before the first shard needs them."""
    from yolo_assigner.audit.detector import load_detector
    from yolo_assigner.audit.shard import criterion_of
    from yolo_assigner.audit.sources import file_digest

    loss = loss_options(options)
    changes = Changes(options.try_min_box_side, options.try_imgsz)
    settings = Settings("", "", options.imgsz, options.batch, tuple(options.strides), options.reg_max, loss, changes)
    criterion_of(1, settings.strides, settings.reg_max, loss)
    if options.weights is None:
        return settings
    step = load_detector(options.weights).config.strides[-1]
    if options.imgsz % step:
        raise ValueError(f"--imgsz is {options.imgsz}; give a multiple of {step}, the detector's coarsest stride")
    return settings._replace(weights=str(options.weights), weights_digest=file_digest(options.weights))


def _run_shards(source: Source, settings: Settings, options: argparse.Namespace) -> list[ShardFacts]:
    from yolo_assigner.audit.parquet import remove_partial
    from yolo_assigner.audit.shard import audit_shard, failed, finished
    from yolo_assigner.audit.sources import plan_shards, shard_count

    folder, count = options.out / "truths", shard_count(source, options.shard_size)
    manner = manner_of(options)
    remedy = f"of an audit with another number of files, this one has {count}"
    check_folder(folder, lambda name: name.endswith(f"-of-{count:05d}.parquet"), remedy)
    remove_partial(folder)
    task = Task("audit", "file" if source.stored else "picture", audit_shard, finished, failed)
    return compute_shards(task, plan_shards(source, settings, folder, options.shard_size), len(source.items), manner)


def _report(source: Source, facts: Sequence[ShardFacts], options: argparse.Namespace) -> int:
    from yolo_assigner.audit.report import render
    from yolo_assigner.audit.summary import NEEDED, summarise, worst_rows
    from yolo_assigner.audit.table import read_rows

    paths = sorted((options.out / "truths").glob("*.parquet"))
    summary = summarise(read_rows(paths, NEEDED), facts, source.class_names)
    worst = worst_rows(read_rows(paths), options.worst)
    (options.out / "summary.json").write_text(json.dumps(summary.as_json(), indent=2) + "\n", encoding="utf-8")
    (options.out / "report.html").write_text(render(summary, worst, source.root), encoding="utf-8")
    print(_text(summary.reasons, summary.ground_truths, summary.images))
    print(f"written: {options.out / 'report.html'}, {options.out / 'summary.json'}, {options.out / 'truths'}")
    return tell_bad(summary.bad)


def _text(reasons: dict[str, int], objects: int, images: int) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{objects} objects in {images} pictures: {counts or 'none'}"

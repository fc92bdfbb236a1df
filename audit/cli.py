"""The command ``yolo-assigner audit``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from yolo_assigner.audit.structures import Changes, LossOptions, Settings, ShardFacts, Source

BAD_FILES, UNUSABLE = 1, 2
# By the convention of shells: 128 and the number of SIGINT.
INTERRUPTED = 130
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


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the examples."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit a data set.

    Args:
        arguments: Words after ``yolo-assigner audit``; those of the process when None.

    Returns:
        The exit code that the command's help describes.
    """
    options = build_parser().parse_args(arguments)
    try:
        return _audit(options)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; pip install 'yolo-assigner[audit]'", file=sys.stderr)
        return UNUSABLE
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="yolo-assigner audit",
        description="Explain why the objects of a data set are learned or not.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
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
    stored = parser.add_argument_group("head", "of --predictions; a detector's follows from its weights")
    stored.add_argument("--strides", type=float, nargs="+", default=[8, 16, 32], metavar="PIXELS", help="one a level")
    stored.add_argument("--reg-max", type=int, default=16, metavar="R", help="bins per side")
    _add_loss_arguments(parser)
    return parser


def _add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    loss = parser.add_argument_group("loss", "as in the training")
    default = LossOptions()
    loss.add_argument("--topk", type=int, default=default.topk, metavar="K", help="candidates per object")
    loss.add_argument("--alpha", type=float, default=default.alpha, help="exponent of the class score")
    loss.add_argument("--beta", type=float, default=default.beta, help="exponent of the IoU")
    loss.add_argument("--preset", default=default.preset, help="yolov8 or ultralytics-8.4")
    loss.add_argument("--min-box-side", type=float, metavar="PIXELS", help="smaller boxes are enlarged to it")
    loss.add_argument("--topk2", type=int, metavar="K", help="anchors that an object keeps")
    tried = parser.add_argument_group("what would help", "computed beside; by default chosen from strides and --imgsz")
    tried.add_argument("--try-min-box-side", type=float, metavar="PIXELS", help="another min_box_side")
    tried.add_argument("--try-imgsz", type=int, metavar="PIXELS", help="another input size")


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
    for name in ("imgsz", "batch", "shard_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}; give at least 1")
    if options.data is not None and options.weights is None:
        raise ValueError("--data needs a detector; give its state dict as --weights, or stored maps as --predictions")
    if options.predictions is not None and options.weights is not None:
        raise ValueError(f"--weights is {options.weights}, but --predictions holds the maps; leave --weights out")


def _settings(options: argparse.Namespace) -> Settings:
    """Check weights and hyper-parameters before the first shard needs them."""
    from yolo_assigner.audit.detector import load_detector
    from yolo_assigner.audit.shard import criterion_of
    from yolo_assigner.audit.sources import file_digest

    loss = LossOptions(options.topk, options.alpha, options.beta, options.preset, options.min_box_side, options.topk2)
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
    from tqdm import tqdm

    from yolo_assigner.audit.shard import audit_shard, finished
    from yolo_assigner.audit.sources import plan_shards

    folder = options.out / "truths"
    _check_folder(source, options)
    facts = []
    unit = "file" if source.stored else "picture"
    with tqdm(total=len(source.items), desc="audit", unit=unit, smoothing=0) as progress:
        for shard in plan_shards(source, settings, folder, options.shard_size):
            if finished(shard):
                progress.initial += len(shard.items)  # what an earlier run did says nothing about the time left
            facts.append(audit_shard(shard, progress.update))
            progress.set_postfix(bad=sum(len(one.bad) for one in facts))
    return facts


def _check_folder(source: Source, options: argparse.Namespace) -> None:
    """Refuse a folder whose files belong to an audit with other shards; a reader of the folder would mix them."""
    from yolo_assigner.audit.sources import shard_count

    count, folder = shard_count(source, options.shard_size), options.out / "truths"
    others = sorted(path.name for path in folder.glob("*.parquet") if not path.stem.endswith(f"-of-{count:05d}"))
    if others:
        raise ValueError(
            f"{folder} holds {others[0]} of an audit with another number of files, this one has {count}; delete the "
            "folder, or choose another --out"
        )


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
    for bad in summary.bad:
        print(f"bad: {bad.name}: {bad.fault}", file=sys.stderr)
    if summary.bad:
        print(f"error: {len(summary.bad)} files cannot be used", file=sys.stderr)
    return BAD_FILES if summary.bad else 0


def _text(reasons: dict[str, int], objects: int, images: int) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{objects} objects in {images} pictures: {counts or 'none'}"

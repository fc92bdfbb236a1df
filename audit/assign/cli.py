"""The command ``yolo-assigner assign``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolo_assigner.audit.options import (
    add_shared_arguments,
    check_folder,
    loss_options,
    make_parser,
    manner_of,
    run_command,
    tell_bad,
)
from yolo_assigner.audit.runner import Manner, Task, compute_shards
from yolo_assigner.audit.structures import Settings, Source

if TYPE_CHECKING:
    from yolo_assigner.audit.assign.shard import TargetFacts

EXAMPLES = """\
examples:
  yolo-assigner assign --input maps --output targets
  yolo-assigner assign --input maps --output targets --workers 8 --preset ultralytics-8.4
  yolo-assigner assign --input /shared/maps --output /shared/targets --ray

Each .npz or .safetensors file of --input gets a Parquet file of targets in --output, with a row for every image.
yolo_assigner.audit.assign.targets.read_targets reads it back.
An interrupted run goes on where it was when the same command runs again.
Exit code: 0; 1 if files cannot be used; 2 if arguments are unusable; 130 if interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Assign a data set.

    Args:
        arguments: Words after ``yolo-assigner assign``; those of the process when None.

    Returns:
        The exit code that the command's help describes.
    """
    return run_command(_assign, build_parser().parse_args(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    description = "Assign stored predictions of a data set to its objects, and write the targets."
    parser = make_parser("assign", description, EXAMPLES)
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder with stored maps and boxes")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the targets")
    add_shared_arguments(parser, "whose maps are stored")
    return parser


def _assign(options: argparse.Namespace) -> int:
    # Imported here: the help needs none of them.
    from yolo_assigner.audit.shard import criterion_of
    from yolo_assigner.audit.sources import find_predictions

    manner = manner_of(options)
    source = find_predictions(options.input)
    settings = Settings(strides=tuple(options.strides), reg_max=options.reg_max, loss=loss_options(options))
    criterion_of(1, settings.strides, settings.reg_max, settings.loss)  # refuses what is invalid
    facts = _run(source, settings, options.output, manner)
    bad = [one for shard in facts for one in shard.bad]
    images, objects, assigned = (sum(getattr(one, name) for one in facts) for name in ("images", "objects", "assigned"))
    print(f"{assigned} anchors learn {objects} objects; images: {images}, files: {len(facts) - len(bad)}")
    print(f"written: {options.output}")
    return tell_bad(bad)


def _run(source: Source, settings: Settings, folder: Path, manner: Manner) -> list[TargetFacts]:
    from yolo_assigner.audit.assign.shard import assign_shard, failed, finished
    from yolo_assigner.audit.parquet import remove_partial
    from yolo_assigner.audit.sources import plan_target_files

    names = {f"{item.name}.parquet" for item in source.items}
    check_folder(folder, names.__contains__, "of predictions that are not there any more")
    remove_partial(folder)
    task = Task("assign", "file", assign_shard, finished, failed)
    return compute_shards(task, plan_target_files(source, settings, folder), len(source.items), manner)

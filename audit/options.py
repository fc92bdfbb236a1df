"""What the commands ``audit`` and ``assign`` share: options, exit codes, and how faults are told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from yolo_assigner.audit.runner import Manner
from yolo_assigner.audit.structures import BadFile, LossOptions

BAD_FILES, UNUSABLE = 1, 2
# By the convention of shells: 128 and the number of SIGINT.
INTERRUPTED = 130


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the examples."""


def run_command(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command, and tell what ends it.

    Returns:
        The command's exit code, ``UNUSABLE`` or ``INTERRUPTED``.
    """
    try:
        return command(options)
    except ModuleNotFoundError as error:
        extra = "ray" if error.name == "ray" else "audit"
        print(f"error: {error.name} is not installed; pip install 'yolo-assigner[{extra}]'", file=sys.stderr)
        return UNUSABLE
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED


def make_parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Make the parser of ``yolo-assigner NAME``, without options."""
    return argparse.ArgumentParser(
        prog=f"yolo-assigner {name}", description=description, epilog=examples, formatter_class=HelpFormatter
    )


def add_shared_arguments(parser: argparse.ArgumentParser, head: str) -> None:
    """Add the options of where shards are computed, of the head, and the hyper-parameters of the assignment.

    Args:
        parser: The parser.
        head: Describes the head that the options are of.
    """
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that compute files, 1 unless given; with --ray tasks at a time, by default one a CPU",
    )
    parser.add_argument("--ray", action="store_true", help="compute files on the Ray cluster of RAY_ADDRESS, or here")
    stored = parser.add_argument_group("head", head)
    stored.add_argument("--strides", type=float, nargs="+", default=[8, 16, 32], metavar="PIXELS", help="one a level")
    stored.add_argument("--reg-max", type=int, default=16, metavar="R", help="bins per side")
    loss = parser.add_argument_group("loss", "as in the training")
    default = LossOptions()
    loss.add_argument("--topk", type=int, default=default.topk, metavar="K", help="candidates per object")
    loss.add_argument("--alpha", type=float, default=default.alpha, help="exponent of the class score")
    loss.add_argument("--beta", type=float, default=default.beta, help="exponent of the IoU")
    loss.add_argument("--preset", default=default.preset, help="yolov8 or ultralytics-8.4")
    loss.add_argument("--min-box-side", type=float, metavar="PIXELS", help="smaller boxes are enlarged to it")
    loss.add_argument("--topk2", type=int, metavar="K", help="anchors that an object keeps")


def loss_options(options: argparse.Namespace) -> LossOptions:
    """The hyper-parameters that were given."""
    return LossOptions(**{name: getattr(options, name) for name in LossOptions._fields})


def manner_of(options: argparse.Namespace) -> Manner:
    """Where shards are computed.

    Raises:
        ValueError: The number of processes is below 1.
    """
    check_positive(options, ["workers"])
    return Manner(options.workers, options.ray)


def check_positive(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse numbers below 1; None is none.

    Raises:
        ValueError: Such a number was given.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; give at least 1")


def check_folder(folder: Path, keep: Callable[[str], bool], remedy: str) -> None:
    """Refuse a folder with files of another run; a reader of the folder would mix them.

    Args:
        folder: Where Parquet files are written.
        keep: Whether a file, by its name in the folder, is one of this run's.
        remedy: What is the case, and what to do.

    Raises:
        ValueError: There is another one.
    """
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    others = sorted(name for name in names if not keep(name))
    if others:
        raise ValueError(f"{folder} holds {others[0]} {remedy}; delete the folder, or choose another one")


def tell_bad(bad: Sequence[BadFile]) -> int:
    """List files that cannot be used, and return the exit code."""
    for one in bad:
        print(f"bad: {one.name}: {one.fault}", file=sys.stderr)
    if bad:
        print(f"error: {len(bad)} files cannot be used", file=sys.stderr)
    return BAD_FILES if bad else 0

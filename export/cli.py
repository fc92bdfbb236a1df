"""The command line ``yolo-assigner export COMMAND``; each command's options are in its package's ``command.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from yolo_assigner.export.contract import ContractError
from yolo_assigner.export.repository import command as repository
from yolo_assigner.export.to_onnx import command as to_onnx
from yolo_assigner.export.to_tensorrt import command as to_tensorrt
from yolo_assigner.export.to_tensorrt.log import BuildError
from yolo_assigner.export.to_triton import command as to_triton
from yolo_assigner.export.verification import command as verification

COMMANDS = {
    "onnx": to_onnx,
    "tensorrt": to_tensorrt,
    "verify": verification,
    "all": repository,
    "triton": to_triton,
}
# By the convention of shells: 128 and the number of SIGINT.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after ``yolo-assigner export``; those of the process when None.

    Returns:
        0 on success, 1 when a verification or a build failed, 2 when the arguments or files are unusable, 130 when the
        user interrupted it.
    """
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ContractError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(prog="yolo-assigner export", description="Export the assigner and the loss.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(
                name,
                help=command.SUMMARY,
                description=f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}.",
                epilog=f"examples:\n{command.EXAMPLES}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser

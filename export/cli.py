"""The command line: ``yolo-assigner export COMMAND``; each command in a module of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from yolo_assigner.export.contract import ContractError
from yolo_assigner.export.repository import command as command_all
from yolo_assigner.export.to_onnx import command as command_onnx
from yolo_assigner.export.to_tensorrt import command as command_tensorrt
from yolo_assigner.export.to_tensorrt.log import BuildError
from yolo_assigner.export.to_triton import command as command_triton
from yolo_assigner.export.verification import command as command_verify

COMMANDS = {
    "onnx": command_onnx,
    "tensorrt": command_tensorrt,
    "verify": command_verify,
    "all": command_all,
    "triton": command_triton,
}
# As shells have it: 128 and the signal's number.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after ``yolo-assigner export``; those of the process when None.

    Returns:
        0 when all went well, 1 when a verification or a build failed, 2 when the arguments or files are unusable,
        130 when the user ended it.
    """
    options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolo-assigner export", description="Export the assigner and the loss.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.SUMMARY))
    return parser

"""The command line: ``python -m export COMMAND``; each command in a module of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from export import command_onnx, command_verify
from export.contract import ContractError

COMMANDS = {"onnx": command_onnx, "verify": command_verify}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after ``python -m export``; those of the process when None.

    Returns:
        0 when all went well, 1 when a verification or a build failed, 2 when the arguments or files are unusable.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ContractError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description="Export the assigner and the loss.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.SUMMARY))
    return parser

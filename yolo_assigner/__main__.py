"""The command ``yolo-assigner``, also ``python -m yolo_assigner``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from yolo_loss import __version__

USAGE = """usage: yolo-assigner [-h] [--version] COMMAND ...

YOLOv8's label assignment and detection loss.

commands (`yolo-assigner COMMAND --help` lists the options of one):
  export    write models to ONNX, build TensorRT engines of them, verify them
  serve     serve exported models over HTTP
  explain   write a page that shows why each ground truth of a batch is learned or not
  audit     explain why the objects of a data set are learned or not
  assign    assign stored predictions of a data set, and write the targets
"""
USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command line without the program; the process's own when None.

    Returns:
        Exit code: that of the command; 2 when there is no such command.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if name == "--version":
        print(f"yolo-assigner {__version__}")
        return 0
    if name not in COMMANDS:
        fault = f"unknown command {name!r}" if name else "no command"
        print(f"{USAGE}\nyolo-assigner: {fault}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE_ERROR
    return COMMANDS[name](words[1:])


def _export(arguments: Sequence[str]) -> int:
    from yolo_assigner.export.cli import main as export

    return export(arguments)


def _serve(arguments: Sequence[str]) -> int:
    from yolo_assigner.serve.__main__ import main as serve

    return serve(arguments)


def _explain(arguments: Sequence[str]) -> int:
    from yolo_assigner.serve.explain.cli import main as explain

    return explain(arguments)


def _audit(arguments: Sequence[str]) -> int:
    from yolo_assigner.audit.cli import main as audit

    return audit(arguments)


def _assign(arguments: Sequence[str]) -> int:
    from yolo_assigner.audit.assign.cli import main as assign

    return assign(arguments)


# Imported when chosen: a server handles signals before it imports anything else.
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "export": _export,
    "serve": _serve,
    "explain": _explain,
    "audit": _audit,
    "assign": _assign,
}


if __name__ == "__main__":
    sys.exit(main())

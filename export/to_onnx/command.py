"""``yolo-assigner export onnx``."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from yolo_assigner.export.contract import DETECTOR_KINDS, KINDS, PRECISIONS, Contract
from yolo_assigner.export.hyperparameters import OPTIONS, Hyperparameters

SUMMARY = "write a model as ONNX with its contract"
EXAMPLES = """\
  yolo-assigner export onnx --model loss --num-classes 80 --out artifacts
  yolo-assigner export onnx --model loss --num-classes 80 --out dense --for tensorrt
  yolo-assigner export onnx --model detector_loss --num-classes 80 --scale n --weights best.pt --out artifacts"""
# The implementation of the assignment that each runtime does best with.
IMPLEMENTATIONS = {"onnxruntime": "sparse", "tensorrt": "dense"}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the examples."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.formatter_class = HelpFormatter
    parser.add_argument("--model", required=True, choices=KINDS, help="what to export")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the file and its contract")
    parser.add_argument("--name", help="name it is served under; by default the kind of model")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--for",
        dest="runtime",
        default="onnxruntime",
        choices=IMPLEMENTATIONS,
        help="runtime that is to run the model; chooses the implementation of the assignment",
    )
    ways.add_argument(
        "--implementation", help="in place of --for: sparse, the fastest in ONNX Runtime, or dense, as TensorRT needs"
    )
    ways.add_argument("--formulation", help=argparse.SUPPRESS)  # the old name of --implementation
    parser.add_argument(
        "--precision", default="fp32", choices=PRECISIONS, help="type of predictions and images, and of a detector"
    )
    detector = parser.add_argument_group("detector", "of --model detector_loss and detector_explain")
    detector.add_argument("--weights", type=Path, metavar="FILE", help="its state dict, by torch or safetensors")
    others = parser.add_argument_group("hyper-parameters", "defaults are those of YOLOv8's detection loss")
    for field in fields(Hyperparameters):
        option = OPTIONS[field.name]
        group = detector if option.kinds == DETECTOR_KINDS else others
        flag = f"--{field.name.replace('_', '-')}"
        if option.parse is None:
            group.add_argument(flag, action="store_true", help=option.help)
        else:
            group.add_argument(flag, type=option.parse, default=field.default, metavar=option.metavar, help=option.help)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export a model; 0 when the files are written."""
    implementation = _chosen_implementation(options)
    print(f"exporting {options.model} ...", flush=True)
    started = time.perf_counter()
    from yolo_assigner.export.to_onnx.exporter import export_onnx

    hyperparameters = Hyperparameters(**{name: getattr(options, name) for name in OPTIONS})
    path, contract = export_onnx(
        options.model,
        hyperparameters,
        options.out,
        name=options.name,
        implementation=implementation,
        weights=options.weights,
        precision=options.precision,
    )
    seconds = time.perf_counter() - started
    print(f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB) and {contract.name}.json in {seconds:.0f} s")
    return 0


def _chosen_implementation(options: argparse.Namespace) -> str:
    if options.formulation:
        print("warning: --formulation is now --implementation; --for tensorrt chooses one by runtime", file=sys.stderr)
    return str(options.formulation or options.implementation or IMPLEMENTATIONS[options.runtime])


def export_command(contract: Contract, runtime: str, name: str, out: Path) -> str:
    """Write the command that exports an exported model once more, for another runtime.

    Args:
        contract: Contract of the model.
        runtime: One of ``IMPLEMENTATIONS``.
        name: Name of the new model.
        out: Folder of the new model.

    Returns:
        A line for a shell; ``FILE`` stands for a detector's weights, which the contract does not name.
    """
    from yolo_assigner.export.hyperparameters import Hyperparameters

    words = ["yolo-assigner", "export", "onnx", "--model", contract.kind, "--for", runtime]
    words += ["--name", name, "--out", str(out)]
    if contract.precision != "fp32":
        words += ["--precision", contract.precision]
    if contract.kind in DETECTOR_KINDS:
        words += ["--weights", "FILE"]
    given = contract.hyperparameters
    # Other defaults follow from these.
    decisive = {key: given[key] for key in ("preset", "strides", "end_to_end") if key in given}
    plain = Hyperparameters().as_contract()
    defaults = Hyperparameters(**decisive).as_contract() | {key: plain.get(key) for key in decisive}
    for key, value in given.items():
        if value is not None and value != defaults.get(key):
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [_option_value(value)])]
    return shlex.join(words)


def _option_value(value: Any) -> str:
    values = value.values() if isinstance(value, dict) else value
    return ",".join(str(number) for number in values) if isinstance(value, (dict, list)) else str(value)

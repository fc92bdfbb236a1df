"""``yolo-assigner export onnx``."""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from pathlib import Path

from yolo_assigner.export.contract import KINDS, PRECISIONS
from yolo_assigner.export.hyperparameters import DETECTOR_KINDS, OPTIONS, Hyperparameters

SUMMARY = "write a model as ONNX with its contract"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--model", required=True, choices=KINDS, help="what to export")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the file and its contract")
    parser.add_argument("--name", help="name it is served under; the model's when not given")
    parser.add_argument(
        "--formulation", default="sparse", help="sparse, the fastest in ONNX Runtime; dense, which TensorRT takes"
    )
    parser.add_argument(
        "--precision", default="fp32", choices=PRECISIONS, help="of predictions and pictures, and of a detector"
    )
    detector = parser.add_argument_group("detector", "of --model detector_loss")
    detector.add_argument("--weights", type=Path, metavar="FILE", help="its state dict, by torch or safetensors")
    others = parser.add_argument_group("hyper-parameters", "defaults are those of YOLOv8's detection loss")
    for field in fields(Hyperparameters):
        option = OPTIONS[field.name]
        group = detector if option.kinds == DETECTOR_KINDS else others
        flag = f"--{field.name.replace('_', '-')}"
        group.add_argument(flag, type=option.parse, default=field.default, metavar=option.metavar, help=option.help)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export; 0 when the files are written."""
    print(f"exporting {options.model} ...", flush=True)
    started = time.perf_counter()
    from yolo_assigner.export.to_onnx.exporter import export_onnx

    hyperparameters = Hyperparameters(**{name: getattr(options, name) for name in OPTIONS})
    path, contract = export_onnx(
        options.model,
        hyperparameters,
        options.out,
        name=options.name,
        implementation=options.formulation,
        weights=options.weights,
        precision=options.precision,
    )
    seconds = time.perf_counter() - started
    print(f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB) and {contract.name}.json in {seconds:.0f} s")
    return 0

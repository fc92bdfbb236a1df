"""``yolo-assigner export onnx``."""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from pathlib import Path

from yolo_assigner.export.contract import KINDS, PRECISIONS

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
    detector.add_argument("--scale", help="its scale: n, s, m, l or x")
    numbers = parser.add_argument_group("hyper-parameters", "defaults are those of YOLOv8's detection loss")
    numbers.add_argument("--num-classes", type=int, default=80, metavar="C", help="the assigner's graph takes any C")
    numbers.add_argument("--strides", type=_numbers, default=(8.0, 16.0, 32.0), metavar="8,16,32", help="one per level")
    numbers.add_argument("--reg-max", type=int, default=16, metavar="R", help="bins per box side")
    numbers.add_argument("--topk", type=int, default=10, help="candidates per ground truth")
    numbers.add_argument("--alpha", type=float, default=0.5, help="exponent of the class score")
    numbers.add_argument("--beta", type=float, default=6.0, help="exponent of the overlap")
    numbers.add_argument("--eps", type=float, default=1e-9, help="margin inside a box and guard of the soft score")
    numbers.add_argument("--preset", default="yolov8", help="yolov8 or ultralytics-8.4")
    numbers.add_argument("--min-box-side", type=float, help="over the preset's, pixels")
    numbers.add_argument("--topk2", type=int, help="over the preset's; 1 for one-to-one assignment")
    numbers.add_argument("--class-loss", default="bce", help="bce or varifocal")
    numbers.add_argument("--gains", type=_numbers, default=(7.5, 0.5, 1.5), metavar="BOX,CLS,DFL", help="of the terms")
    parser.set_defaults(run=run)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


def run(options: argparse.Namespace) -> int:
    """Export; 0 when the files are written."""
    print(f"exporting {options.model} ...", flush=True)
    started = time.perf_counter()
    from yolo_assigner.export.hyperparameters import Hyperparameters
    from yolo_assigner.export.to_onnx.exporter import export_onnx

    numbers = Hyperparameters(**{field.name: getattr(options, field.name) for field in fields(Hyperparameters)})
    path, contract = export_onnx(
        options.model,
        numbers,
        options.out,
        name=options.name,
        formulation=options.formulation,
        weights=options.weights,
        precision=options.precision,
    )
    seconds = time.perf_counter() - started
    print(f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB) and {contract.name}.json in {seconds:.0f} s")
    return 0

"""``yolo-assigner explain REQUEST --out report.html``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from yolo_assigner.export.hyperparameters import OPTIONS, Hyperparameters
from yolo_assigner.serve.errors import ServeError
from yolo_assigner.serve.explain.compute import Document, explain_by_model, explain_by_torch
from yolo_assigner.serve.explain.report import match_photos, read_photos, write_report
from yolo_assigner.serve.explain.request import RequestFile, read_request

DESCRIPTION = """\
Explain why each ground truth of a batch is learned or not, as one HTML file that opens without a server.

REQUEST is an npz or safetensors file with feat_0, feat_1, ..., the head's maps, batch_idx, cls and bboxes, and
optionally names, those of the pictures. By default torch computes the explanation; with --artifacts an exported model
of kind explain does, and torch need not be installed."""
EXAMPLES = """\
examples:
  yolo-assigner explain request.npz --image street.jpg --out report.html
  yolo-assigner explain request.npz --preset ultralytics-8.4 --out report.html
  yolo-assigner export onnx --model explain --num-classes 80 --out artifacts
  yolo-assigner explain request.npz --artifacts artifacts --out report.html"""
UNUSABLE = 2
HYPERPARAMETERS = [name for name, option in OPTIONS.items() if "explain" in option.kinds and not option.of_graph]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a report.

    Args:
        arguments: Words after ``yolo-assigner explain``; those of the process when None.

    Returns:
        0 when it is written, 2 when the arguments or files cannot be used.
    """
    options = build_parser().parse_args(arguments)
    try:
        request = read_request(options.request)
        photos = match_photos(read_photos(options.image), request.names, len(request.feats[0]))
        document = _explain(options, request)
        options.out.write_text(write_report(document, options.request.name, request.names, photos), encoding="utf-8")
    except (ServeError, ValueError, OSError) as error:
        print(f"explain: {error}", file=sys.stderr)
        return UNUSABLE
    print(f"wrote {options.out}: {_summary(document)}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="yolo-assigner explain",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("request", type=Path, metavar="REQUEST", help="npz or safetensors file")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="HTML file to write")
    parser.add_argument(
        "--image",
        type=Path,
        nargs="+",
        default=[],
        metavar="PHOTO",
        help="pictures of the images, by their names or in their order",
    )
    model = parser.add_argument_group("exported model")
    model.add_argument("--artifacts", type=Path, metavar="DIR", help="folder of exported models; torch is not loaded")
    model.add_argument("--model", metavar="NAME", help="one of kind explain; by default the first")
    others = parser.add_argument_group("hyper-parameters", "without --artifacts; defaults are those of YOLOv8's loss")
    for field in fields(Hyperparameters):
        if field.name in HYPERPARAMETERS:
            option = OPTIONS[field.name]
            text = f"{option.help} (default: {field.default})"
            if field.name == "num_classes":
                text = "classes (default: the maps' channels beside the bins)"
            flag = f"--{field.name.replace('_', '-')}"
            others.add_argument(flag, type=option.parse or str, metavar=option.metavar, help=text)
    return parser


def _explain(options: argparse.Namespace, request: RequestFile) -> Document:
    given = {name: value for name in HYPERPARAMETERS if (value := getattr(options, name)) is not None}
    if options.artifacts is None:
        if options.model is not None:
            raise ValueError("--model names an exported model; give --artifacts, too")
        return explain_by_torch(request, {"reg_max": Hyperparameters.reg_max, **given})
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{flags} cannot be given with --artifacts: the exported model has its own; leave one out")
    return explain_by_model(request, options.artifacts, options.model)


def _summary(document: Document) -> str:
    reasons: dict[str, int] = document["reasons"]
    total = sum(reasons.values())
    others = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if reason != "assigned")
    return f"{reasons.get('assigned', 0)} of {total} ground truths are learned{f'; {others}' if others else ''}"

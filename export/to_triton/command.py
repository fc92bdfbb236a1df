"""``yolo-assigner export triton``."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "lay out exported models as a model repository of Triton Inference Server"
EXAMPLES = """\
  yolo-assigner export triton artifacts --out model_repository
  yolo-assigner export triton artifacts --out model_repository --models loss assigner --prefer tensorrt"""
BACKENDS = ("onnxruntime", "tensorrt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with the exported models")
    parser.add_argument("--out", required=True, type=Path, metavar="REPO", help="Triton's model repository")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these")
    parser.add_argument(
        "--prefer",
        choices=BACKENDS,
        default=BACKENDS[0],
        help="for models that have an engine of tensorrt as well: which of the two (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="also replace folders that this command did not write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the models' folders; 0 when all are there."""
    from yolo_assigner.export.contract import ContractError, find_contracts
    from yolo_assigner.export.to_triton.repository import choose_source, lay_out

    found = {contract.name: (path, contract) for path, contract in find_contracts(options.folder)}
    for name in options.models or ():
        if name not in found:
            raise ContractError(f"no model {name!r} in {options.folder}; it has {', '.join(found)}")
    names = options.models or list(found)
    # Choose all before writing any: an unusable model is reported while the repository is unchanged.
    sources = [choose_source(*found[name], prefer_engine=options.prefer == "tensorrt") for name in names]
    for source in sources:
        folder = lay_out(source, options.out, force=options.force)
        print(f"wrote {folder} ({source.backend}, {source.file.name}){source.remark}")
    return 0

"""``yolo-assigner export verify``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "compare exported models with torch float64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with the exported models")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify every model of a folder; 1 when a difference is past its tolerance, or a model cannot be run here."""
    from yolo_assigner.export.contract import find_contracts
    from yolo_assigner.export.report import report, summary
    from yolo_assigner.export.runnable import CannotRunError
    from yolo_assigner.export.verify import verify_model

    failed, unverified, verified = 0, [], []
    for path, contract in find_contracts(options.folder):
        try:
            differences = verify_model(path, contract)
        except CannotRunError as error:
            unverified.append(contract.name)
            print(f"{contract.name} ({contract.precision}) is not verified: {error}\n", flush=True)
            continue
        print(report(contract, differences), flush=True)
        verified.append((contract, differences))
        failed += sum(not difference.passed for difference in differences)
    print(summary(verified))
    if failed:
        print(f"error: {failed} differences past their tolerance", file=sys.stderr)
    if unverified:
        print(f"error: {', '.join(unverified)} cannot be run on this machine", file=sys.stderr)
    return 1 if failed or unverified else 0

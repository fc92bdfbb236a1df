"""``python -m export verify``."""

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
    """Verify every model of a folder; 1 when a difference is past its tolerance."""
    from export.report import report
    from export.verify import verify_folder

    failed = 0
    for contract, differences in verify_folder(options.folder):
        print(report(contract, differences), flush=True)
        failed += sum(not difference.passed for difference in differences)
    if failed:
        print(f"error: {failed} differences past their tolerance", file=sys.stderr)
    return 1 if failed else 0

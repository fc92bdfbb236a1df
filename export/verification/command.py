"""``yolo-assigner export verify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolo_assigner.export.contract import Contract

if TYPE_CHECKING:  # it loads torch, which `--help` does without
    from yolo_assigner.export.verification.comparison import Difference

SUMMARY = "compare exported models with torch float64"
EXAMPLES = "  yolo-assigner export verify artifacts"
# Outputs that are equal or wrong: indices and masks.
DECISIONS = ("target_labels", "fg_mask", "target_gt_idx", "reason", "pair_outcome", "pair_lost_to")
# Columns of the summary, each with the beginnings of the names of its outputs.
COLUMNS = {
    "targets": ("target_scores", "target_weights", "target_bboxes"),
    "losses": ("loss", "loss_items", "image_sums"),
    "gradients": ("grad_",),
    "maps": ("map_",),
    "predictions": ("predictions",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with the exported models")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify every model in a folder; 1 when a difference exceeds its tolerance, or a model cannot be run here."""
    from yolo_assigner.export.contract import find_contracts
    from yolo_assigner.export.verification.runnable import CannotRunError
    from yolo_assigner.export.verification.verify import verify_model

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


def report(contract: Contract, differences: Sequence[Difference]) -> str:
    """Write the largest difference of each output over all cases as a Markdown table.

    Args:
        contract: Contract of the verified model.
        differences: One per case and output.
    """
    cases = dict.fromkeys(difference.case for difference in differences)
    described = [contract.kind, contract.formulation, *([contract.precision] if contract.precision != "fp32" else [])]
    lines = [
        f"{contract.name} ({', '.join(described)}), {len(cases)} inputs, beside torch float64",
        "",
        "| output | largest difference | allowed | where (B, M, C, first map) | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(difference.output for difference in differences):
        worst = max((d for d in differences if d.output == name), key=lambda d: d.largest)
        case = worst.case
        where = f"{case.batch}, {case.slots}, {case.num_classes}, {case.grids[0][0]}x{case.grids[0][1]}"
        verdict = "ok" if all(d.passed for d in differences if d.output == name) else "FAILED"
        shown = f"{worst.largest:.0f} entries" if worst.tolerance == 0 else f"{worst.largest:.1e}"
        lines.append(f"| {name} | {shown} | {worst.tolerance:g} | {where} | {verdict} |")
    return "\n".join([*lines, ""])


def summary(verified: Sequence[tuple[Contract, Sequence[Difference]]]) -> str:
    """Write a Markdown table with a row per model: its largest differences over all inputs.

    Args:
        verified: Contract and differences of each model, as ``verify_model`` returns them.
    """
    heads = ["model", "formulation", "precision", "decisions that differ", *COLUMNS, ""]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for contract, differences in verified:
        wrong = sum(d.largest for d in differences if _of_branch(d.output) in DECISIONS)
        figures = [_worst(differences, begins) for begins in COLUMNS.values()]
        verdict = "ok" if all(d.passed for d in differences) else "FAILED"
        cells = [contract.name, contract.formulation, contract.precision, f"{wrong:.0f}", *figures, verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _worst(differences: Sequence[Difference], begins: tuple[str, ...]) -> str:
    found = [d.largest for d in differences if _of_branch(d.output).startswith(begins)]
    return f"{max(found):.1e}" if found else ""


def _of_branch(output: str) -> str:
    """An output's name without its branch."""
    return output.removeprefix("one2many_").removeprefix("one2one_")

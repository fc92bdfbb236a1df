"""A verification as a table."""

from __future__ import annotations

from collections.abc import Sequence

from yolo_assigner.export.comparison import Difference
from yolo_assigner.export.contract import Contract

DECISIONS = ("target_labels", "fg_mask", "target_gt_idx")
# Columns of the summary, by what the names of their outputs begin with.
COLUMNS = {
    "targets": ("target_scores", "target_weights", "target_bboxes"),
    "losses": ("loss", "loss_items", "image_sums"),
    "gradients": ("grad_",),
    "maps": ("map_",),
    "predictions": ("predictions",),
}


def report(contract: Contract, differences: Sequence[Difference]) -> str:
    """The largest difference of each output over all cases, as a Markdown table.

    Args:
        contract: Of the model that was verified.
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
    """One row for each model: its largest differences over all inputs, as a Markdown table.

    Args:
        verified: Each model with what ``verify_model`` found.
    """
    heads = ["model", "formulation", "precision", "decisions that differ", *COLUMNS, ""]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for contract, differences in verified:
        wrong = sum(d.largest for d in differences if d.output in DECISIONS)
        figures = [_worst(differences, begins) for begins in COLUMNS.values()]
        verdict = "ok" if all(d.passed for d in differences) else "FAILED"
        cells = [contract.name, contract.formulation, contract.precision, f"{wrong:.0f}", *figures, verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _worst(differences: Sequence[Difference], begins: tuple[str, ...]) -> str:
    found = [d.largest for d in differences if d.output.startswith(begins)]
    return f"{max(found):.1e}" if found else ""

"""A verification as a table."""

from __future__ import annotations

from collections.abc import Sequence

from export.contract import Contract
from export.verify import Difference


def report(contract: Contract, differences: Sequence[Difference]) -> str:
    """The largest difference of each output over all cases, as a Markdown table.

    Args:
        contract: Of the model that was verified.
        differences: One per case and output.
    """
    cases = list(dict.fromkeys(difference.case for difference in differences))
    lines = [
        f"{contract.name} ({contract.kind}, {contract.formulation}), {len(cases)} inputs, beside torch float64",
        "",
        "| output | largest difference | allowed | where (B, M, C, first map) | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for spec in contract.outputs:
        worst = max((d for d in differences if d.output == spec.name), key=lambda d: d.largest)
        case = worst.case
        where = f"{case.batch}, {case.slots}, {case.num_classes}, {case.grids[0][0]}x{case.grids[0][1]}"
        verdict = "ok" if all(d.passed for d in differences if d.output == spec.name) else "FAILED"
        shown = f"{worst.largest:.0f} entries" if worst.tolerance == 0 else f"{worst.largest:.1e}"
        lines.append(f"| {spec.name} | {shown} | {worst.tolerance:g} | {where} | {verdict} |")
    return "\n".join([*lines, ""])

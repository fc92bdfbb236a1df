"""The loss in the place of that of other releases of ``ultralytics``: equal, or refused by a sentence.

Each release is installed without its dependencies into a temporary folder, with pip, and runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.report import first_line, row, table
from benchmarks.parity_training import prepare
from examples.dataset import load_labels, load_pictures
from yolo_loss.integrations.ultralytics import use

RELEASES = ("8.0.196", "8.2.0", "8.3.0", "8.3.200", "8.4.0", "8.4.100", "8.4.190")
MODELS = ("yolov8n", "yolov8n-p2", "yolov10n", "yolov8n-seg")
SIZE = 320


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity_releases", description=__doc__)
    parser.add_argument("--releases", nargs="+", default=RELEASES)
    parser.add_argument("--installed", action="store_true", help="compare the installed release alone, as JSON")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if parsed.installed:
            prepare(Path(folder))
            print(json.dumps([compare(model) for model in MODELS]))
            return 0
        print(table(("release", *MODELS), ()))
        for release in parsed.releases:
            print(row((release, *compare_release(release, Path(folder) / release))), flush=True)
    return 0


def compare_release(release: str, folder: Path) -> list[str]:
    """Install a release, and compare it in a process that finds it first."""
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        folder,
        f"ultralytics=={release}",
    )
    subprocess.run(pip, check=True)
    command = (sys.executable, "-W", "ignore", "-m", "benchmarks.parity_releases", "--installed")
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths})
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(name: str) -> str:
    """Largest relative difference of the terms, or why there is none."""
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    kind = tasks.SegmentationModel if name.endswith("-seg") else tasks.DetectionModel
    try:
        model = kind(f"{name}.yaml", nc=3, verbose=False)
    except FileNotFoundError:
        return "no such model"
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=10, overlap_mask=True)
    labels = {key: torch.from_numpy(values).float() for key, values in load_labels().items()}
    labels["bboxes"] += 1e-3 * torch.rand_like(labels["bboxes"])
    batch = {**labels, "cls": torch.arange(len(labels["cls"])).float()[:, None] % 3}
    images = torch.from_numpy(load_pictures(SIZE))
    preds = transform(model.train()(images), lambda values: values.detach() + torch.randn_like(values))
    try:
        with use():
            got = numbers(model.init_criterion()(preds, batch))
    except ValueError as error:
        return f"refused: {first_line(error)}"
    want = numbers(model.init_criterion()(preds, batch))
    return f"{float(((got - want) / want).abs().max()):.1e}"


def transform(preds: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change all raw predictions of any form."""
    if isinstance(preds, dict):
        return {key: value if key == "feats" else transform(value, change) for key, value in preds.items()}
    return (
        type(preds)(transform(value, change) for value in preds) if isinstance(preds, list | tuple) else change(preds)
    )


def numbers(answer: Any) -> Tensor:
    """All numbers of an answer, so that answers of different forms do not compare."""
    value, items = answer
    shown = torch.stack(list(items.values())) if isinstance(items, dict) else items
    return torch.cat((value.detach().reshape(-1), shown.reshape(-1)))


if __name__ == "__main__":
    sys.exit(main())

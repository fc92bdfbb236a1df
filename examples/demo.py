"""From real predictions to targets and losses, end to end: ``python -m examples.demo``, or ``make demo``.

Exports the models, starts the service, sends the sample's maps and boxes over HTTP, prints what comes back, compares
it with the torch criterion in this process, and draws the assignment.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from examples.dataset import Sample, load_sample
from examples.picture import draw, foreground
from examples.service import export_once, running_service
from yolo_assigner.serve.client import AssignerClient
from yolo_assigner.serve.detection.results import LossResult
from yolo_loss import DetectionLoss

TOLERANCE = 1e-5
NUM_CLASSES = 1
TARGETS = ("fg_mask", "target_gt_idx", "target_weights", "target_bboxes", "target_labels")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 when the service's losses are the criterion's."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="folder of the exported models")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the picture")
    options = parser.parse_args(arguments)
    sample = load_sample()

    step(1, "export the assigner and the loss to ONNX")
    export_once(options.artifacts, NUM_CLASSES)
    step(2, "start the service")
    with running_service(options.artifacts) as url:
        print(f"ready on {url}")
        step(3, f"send the maps of {' and '.join(sample.names)} and their {len(sample.batch['cls'])} boxes")
        with AssignerClient(url) as client:
            started = time.perf_counter()
            result = client.loss(sample.feats, sample.batch, outputs=TARGETS)
            print(f"answered in {(time.perf_counter() - started) * 1000:.0f} ms")
    show(sample, result)
    step(4, "compare with the torch criterion")
    agrees = compare(sample, result)
    step(5, "draw the assignment")
    picture = options.out / "demo.png"
    draw(sample, result, picture)
    print(f"wrote {picture}; the service is stopped")
    return 0 if agrees else 1


def step(number: int, what: str) -> None:
    """Say what happens next."""
    print(f"\n[{number}/5] {what}", flush=True)


def show(sample: Sample, result: LossResult) -> None:
    """Print losses, and targets of a few anchors."""
    box, cls, dfl = result.loss_items.tolist()
    print(f"\nloss {float(result.loss):.5f} = (box {box:.5f} + cls {cls:.5f} + dfl {dfl:.5f}) x {len(sample.names)}")
    mask, owner, soft_scores = foreground(result)
    for image, name in enumerate(sample.names):
        positive, weights, boxes = mask[image], soft_scores[image], np.asarray(result.target_bboxes)[image]
        trees = len(np.unique(owner[image, positive]))
        total = int((sample.batch["batch_idx"] == image).sum())
        print(f"\n{name}: {positive.sum()} of {positive.size} anchors are positive, {trees} of {total} trees have one")
        print("  anchor  ground truth  soft score  target box (x1, y1, x2, y2)")
        for anchor in np.argsort(-weights)[:4]:
            corners = ", ".join(f"{side:.1f}" for side in boxes[anchor])
            print(f"  {anchor:6d}  {owner[image, anchor]:12d}  {weights[anchor]:10.4f}  {corners}")


def compare(sample: Sample, result: LossResult) -> bool:
    """Whether the service and the torch criterion agree on the loss to 1e-5 and on every positive anchor."""
    criterion = DetectionLoss(NUM_CLASSES)
    batch = {name: torch.from_numpy(values) for name, values in sample.batch.items()}
    want = criterion.evaluate([torch.from_numpy(feat) for feat in sample.feats], batch)
    loss = float(want.loss)
    difference = abs(float(result.loss) - loss) / loss
    mask, owner, _ = foreground(result)
    same = np.array_equal(mask, want.assignment.fg_mask) and np.array_equal(owner, want.assignment.target_gt_idx)
    agrees = difference <= TOLERANCE and same
    print(f"torch {loss:.5f}, relative difference {difference:.1e} (allowed {TOLERANCE:g}): ", end="")
    print(f"{'agrees' if agrees else 'DISAGREES'}; positive anchors {'equal' if same else 'DIFFER'}")
    return agrees


if __name__ == "__main__":
    sys.exit(main())

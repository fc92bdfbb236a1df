"""Differences from an installed ``ultralytics``: assignment, losses, gradients, the detector's outputs, and every head.

``make parity`` sets up an environment that has it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.report import RESULTS, row, table, versions, write_json
from benchmarks.parity_heads import compare_heads, detection_models, heads_table
from examples.dataset import load_sample
from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from yolo_assigner.models import SCALES, DetectionModel, DetectorConfig
from yolo_loss import PRESETS, GroundTruth, TaskAlignedAssigner, v8DetectionLoss

STRIDES = (8.0, 16.0, 32.0)
PRESET = "ultralytics-8.4"
Comparison = tuple[str, str]  # what was compared on which input, and the difference


def main() -> int:
    """Print the tables; the exit code is 1 where a head differs, and 0 where the reference is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "parity.json", help="file of the heads' results")
    out: Path = parser.parse_args().out
    if importlib.util.find_spec("ultralytics") is None:
        print("skipped: ultralytics is not installed; `make parity` sets up an environment that has it")
        return 0
    os.environ.setdefault("YOLO_VERBOSE", "false")  # its log would break the table
    torch.manual_seed(0)
    print(f"ultralytics {version('ultralytics')}, torch {torch.__version__}, preset {PRESET}\n")
    print(table(("compared", "difference"), ()))
    for part in (compare_assigners, compare_losses, compare_bfloat16, compare_detectors):
        for comparison in part():
            print(row(comparison), flush=True)
    print()
    heads = []
    for result in compare_heads(detection_models()):
        heads.append(result)
        print(f"{len(heads)}: {result.model}{', class weights' if result.class_weights else ''}", file=sys.stderr)
    print(heads_table(heads))
    write_json(out, {"versions": versions(("torch", "ultralytics")), "heads": [head._asdict() for head in heads]})
    return 0 if all(head.equal for head in heads) else 1


def compare_assigners() -> Iterator[Comparison]:
    """Compare the assigners on seeded inputs."""
    from ultralytics.utils.tal import TaskAlignedAssigner as Reference

    for batch, slots, image, classes in ((4, 30, 640, 80), (2, 100, 640, 80), (8, 10, 320, 1), (1, 300, 640, 3)):
        case = Case(batch, slots, pyramid(image, image, STRIDES), classes)
        inputs = sample_assigner_inputs(case, STRIDES, seed=slots)
        options: dict[str, Any] = {"topk": 10, "num_classes": classes, "alpha": 0.5, "beta": 6.0}
        want = Reference(**options, stride=list(STRIDES))(*inputs)
        got = TaskAlignedAssigner(**options, **PRESETS[PRESET])(*inputs)
        yield (f"assigner, random, B {batch}, M {slots}, {image} px, C {classes}", assignment_difference(got, want))


def assignment_difference(got: Sequence[Tensor], want: Sequence[Tensor]) -> str:
    """Count decisions that differ, and give the largest difference of scores where they agree."""
    got_labels, _, got_scores, got_mask, got_idx = got
    want_labels, _, want_scores, want_mask, want_idx = want
    both = got_mask & want_mask
    weightless = (want_mask ^ got_mask) & (want_scores.sum(-1) == 0) & (got_scores.sum(-1) == 0)
    owners = int((got_idx != want_idx)[both].sum())
    same = (got_mask == want_mask) & (got_idx == want_idx)
    score = float((got_scores - want_scores).abs()[same].max())
    labels = int((got_labels != want_labels)[both & same].sum())
    flags = int((got_mask ^ want_mask).sum())
    return (
        f"{int(want_mask.sum())} foreground; flags {flags} (of weight zero {int(weightless.sum())}), "
        f"owners {owners}, labels {labels}; scores {score:.1e}"
    )


def compare_losses() -> Iterator[Comparison]:
    """Compare losses and gradients, on the committed sample and on seeded maps."""
    sample = load_sample()
    feats = [torch.from_numpy(level) for level in sample.feats]
    batch = {name: torch.from_numpy(values).float() for name, values in sample.batch.items()}
    yield from compare_loss("sample", feats, batch, classes=1)
    for images, slots, classes in ((4, 30, 80), (2, 100, 3), (3, 0, 20)):
        case = Case(images, slots, pyramid(640, 640, STRIDES), classes)
        feats, *rest = sample_loss_inputs(case, STRIDES, 16, seed=slots)
        yield from compare_loss(
            f"random, B {images}, M {slots}, C {classes}", feats, ragged_batch(GroundTruth(*rest), (640, 640)), classes
        )


def compare_loss(name: str, feats: Sequence[Tensor], batch: dict[str, Tensor], classes: int) -> Iterator[Comparison]:
    """Send one input through both criteria, which read the same detector."""
    from ultralytics.utils.loss import v8DetectionLoss as Reference

    model = DetectionModel(DetectorConfig("n", nc=classes))
    results = []
    for criterion in (v8DetectionLoss(model, preset=PRESET), Reference(model)):
        levels = [level.clone().requires_grad_() for level in feats]
        loss, items = criterion(as_dict(levels, classes), {key: value.clone() for key, value in batch.items()})
        loss.sum().backward()
        results.append(
            (as_tensor(items), torch.cat([level.grad.flatten() for level in levels if level.grad is not None]))
        )
    (items, gradient), (want_items, want_gradient) = results
    relative = (items - want_items).abs() / want_items.abs().clamp(min=1e-12)
    shown = ", ".join(f"{value:.4f}" for value in want_items.tolist())
    yield (f"loss, {name}: box, cls, dfl = {shown}", "relative " + ", ".join(f"{r:.1e}" for r in relative.tolist()))
    yield (f"gradient, {name}", f"relative {float((gradient - want_gradient).norm() / want_gradient.norm()):.1e}")


def compare_bfloat16() -> Iterator[Comparison]:
    """Losses with bfloat16 autocast and with bfloat16 maps, each beside float64 on the same values."""
    from ultralytics.utils.loss import v8DetectionLoss as Reference

    classes = 80
    feats, *rest = sample_loss_inputs(Case(4, 30, pyramid(640, 640, STRIDES), classes), STRIDES, 16, seed=30)
    batch = ragged_batch(GroundTruth(*rest), (640, 640))
    model = DetectionModel(DetectorConfig("n", nc=classes))
    ours = v8DetectionLoss(model, preset=PRESET)

    def items(criterion: Any, levels: Sequence[Tensor]) -> Tensor:
        return as_tensor(criterion(as_dict(levels, classes), batch)[1]).double()

    for what, levels in (("autocast", feats), ("maps", [level.bfloat16() for level in feats])):
        want = items(ours, [level.double() for level in levels])
        for name, criterion in (("reference", Reference(model)), ("ours", ours)):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
                relative = ((items(criterion, levels) - want).abs() / want).tolist()
            yield f"bfloat16 {what}, {name} beside float64: box, cls, dfl", ", ".join(f"{r:.1e}" for r in relative)


def as_tensor(items: Tensor | dict[str, Tensor]) -> Tensor:
    """Losses (3,) of box, cls and dfl; some releases of the reference give a dict in the same order."""
    values = torch.stack([value.reshape(()) for value in items.values()]) if isinstance(items, dict) else items
    return values.detach()[:3]


def as_dict(levels: Sequence[Tensor], classes: int) -> dict[str, Any]:
    """Predictions in the form of the heads since release 8.4."""
    joined = torch.cat([level.flatten(2) for level in levels], dim=2)
    return {"boxes": joined[:, :-classes], "scores": joined[:, -classes:], "feats": list(levels)}


def compare_detectors() -> Iterator[Comparison]:
    """Load the weights of the reference's detector into ours, and build our criterion from it."""
    from ultralytics.nn.tasks import DetectionModel as Reference

    images = torch.rand(2, 3, 128, 96)
    for scale in SCALES:
        reference = Reference(f"yolov8{scale}.yaml", nc=7, verbose=False)
        reference.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
        ours = DetectionModel(DetectorConfig(scale, nc=7))
        ours.load_state_dict(reference.state_dict())
        with torch.no_grad():
            maps = ours.train()(images)
            preds = reference.train()(images)
        joined = torch.cat([level.flatten(2) for level in maps], dim=2)
        want = torch.cat((preds["boxes"], preds["scores"]), dim=1)
        difference = float((joined - want).abs().max())
        batch = {"batch_idx": torch.tensor([0.0]), "cls": torch.tensor([3.0]), "bboxes": torch.full((1, 4), 0.5)}
        loss, want_loss = v8DetectionLoss(reference, preset=PRESET)(preds, batch)[0], reference.loss(batch, preds)[0]
        relative = abs(float(loss) / float(want_loss.sum()) - 1)
        yield (f"detector {scale}, its state dict loaded into ours: raw maps", f"{difference:.1e}")
        yield (f"detector {scale}: our criterion built from it, loss", f"relative {relative:.1e}")


if __name__ == "__main__":
    sys.exit(main())

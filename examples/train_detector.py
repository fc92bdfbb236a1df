"""Train the n detector on the two sample pictures with this project's loss, from random weights.

Two pictures make no detector for the world: this shows that the loss trains one, and gives the real head output
(``sample.npz``) that the other examples send to the server. Run ``python -m examples.train_detector``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from examples.dataset import NAMES, Sample, load_labels, save_sample
from examples.evaluation import Found
from examples.training import (
    CONFIDENCE,
    SEED,
    Criterion,
    count_trees,
    detect,
    fine_tune,
    load_data,
    new_detector,
    print_found,
    train,
)
from yolo_assigner.models import DetectionModel, load_checkpoint
from yolo_loss import v8DetectionLoss


def write_results(
    out: Path, model: DetectionModel, history: list[list[float]], found: list[Found], seconds: float
) -> None:
    """Weights and numbers of a run, in a folder that is made for them."""
    out.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), out / "weights.safetensors")
    report = {
        "loss_items": history,
        "seconds": round(seconds, 1),
        "confidence": CONFIDENCE,
        "pictures": {
            name: {**counts._asdict(), "recall": counts.recall, "precision": counts.precision}
            for name, counts in zip(NAMES, found, strict=True)
        },
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def with_noise(criterion: Criterion, noise: float) -> Criterion:
    """The same loss; its gradients by the maps are off by a normal share of ``noise``."""
    generator = torch.Generator().manual_seed(SEED)

    def shake(gradient: Tensor) -> Tensor:
        return gradient * (1 + noise * torch.randn(gradient.shape, generator=generator))

    def noisy(maps: list[Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        for level in maps:
            level.register_hook(shake)
        return criterion(maps, batch)

    return noisy if noise else criterion


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="updates, each on both pictures")
    parser.add_argument("--size", type=int, default=416, help="side of the pictures in pixels, a multiple of 32")
    parser.add_argument("--weights", type=Path, help="go on from these at a small learning rate")
    parser.add_argument(
        "--gradient-noise", type=float, default=0.0, help="relative: 6e-8 shows how far rounding alone leads two runs"
    )
    parser.add_argument("--out", type=Path, default=Path("out/train"), help="folder for weights, report and maps")
    parser.add_argument("--sample", type=Path, help="where to write the maps instead of OUT/sample.npz")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, report, write."""
    options = parse_arguments(arguments)
    model = new_detector()
    data = load_data(options.size)
    criterion = with_noise(v8DetectionLoss(model), options.gradient_noise)
    start = time.perf_counter()
    if options.weights:
        load_checkpoint(model, options.weights)
        history = fine_tune(model, criterion, data, options.steps)
    else:
        history = train(model, criterion, data, options.steps)
    seconds = time.perf_counter() - start
    predictions, maps = detect(model, data.images)
    found = count_trees(predictions, data)
    write_results(options.out, model, history, found, seconds)
    sample_path = options.sample or options.out / "sample.npz"
    labels = load_labels()
    save_sample(sample_path, Sample([m.numpy() for m in maps], labels, (options.size, options.size), NAMES))

    for title, items in (("first", history[0]), ("last", history[-1])):
        print(f"{title} step: loss {sum(items):.3f} = box {items[0]:.3f} + cls {items[1]:.3f} + dfl {items[2]:.3f}")
    print(f"{options.steps} steps in {seconds:.0f} s")
    print_found(found)
    print(f"written: {options.out}, {sample_path}")


if __name__ == "__main__":
    main()

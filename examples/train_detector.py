"""Train the n detector on the two sample pictures with this project's loss, from random weights.

Two pictures make no detector for the world: this shows that the loss trains one, and gives the real head output
(``sample.npz``) that the other examples send to the server. Run ``python -m examples.train_detector``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor
from tqdm import trange

from examples.dataset import NAMES, Sample, load_labels, load_pictures, save_sample
from examples.evaluation import Found, count_found, reported_boxes
from models import DetectionModel, Detections, DetectorConfig
from yolo_loss import v8DetectionLoss, xywh2xyxy

SEED = 0
CONFIDENCE = 0.25


class Data(NamedTuple):
    """Both pictures (2, 3, size, size) and their trees, as the criterion takes them."""

    images: Tensor
    batch: dict[str, Tensor]


class Losses(NamedTuple):
    """Box, class and distribution terms with their gains, of the first and the last step."""

    first: list[float]
    last: list[float]


def load_data(size: int) -> Data:
    """Both pictures at ``size`` x ``size`` pixels with all their trees."""
    batch = {key: torch.from_numpy(column) for key, column in load_labels().items()}
    return Data(torch.from_numpy(load_pictures(size)), batch)


def flip(data: Data, flips: Tensor) -> Data:
    """Mirror pictures and boxes.

    Args:
        data: B pictures.
        flips: (B, 2) bool, whether to mirror left to right and top to bottom.
    """
    images, batch = data
    for axis, dim in ((0, 3), (1, 2)):
        images = torch.where(flips[:, axis, None, None, None], images.flip(dim), images)
    centres, sides = batch["bboxes"][:, :2], batch["bboxes"][:, 2:]
    mirrored = torch.where(flips[batch["batch_idx"]], 1 - centres, centres)  # (T, 2)
    return Data(images, {**batch, "bboxes": torch.cat((mirrored, sides), dim=1)})


def train(model: DetectionModel, data: Data, steps: int, peak_rate: float = 2e-3) -> Losses:
    """Train in place, every step on all pictures, randomly mirrored; the learning rate rises and falls again."""
    criterion = v8DetectionLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps, pct_start=0.1)
    history = []
    model.train()
    progress = trange(steps, desc="train", unit="step")
    for _ in progress:
        images, batch = flip(data, torch.rand(len(data.images), 2) < 0.5)
        loss, items = criterion(model(images), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        optimizer.step()
        schedule.step()
        history.append(items.tolist())
        progress.set_postfix(loss=f"{items.sum().item():.3f}")
    measure_statistics(model, data)
    return Losses(history[0], history[-1])


def measure_statistics(model: DetectionModel, data: Data) -> None:
    """Take the normalisation statistics anew, from the pictures in all four mirrorings.

    Those gathered in training follow the weights by 3 % a step: after a run as short as ours they describe weights
    of long ago, and the detector finds next to nothing in eval mode.
    """
    mirrorings = torch.cartesian_prod(torch.tensor((False, True)), torch.tensor((False, True)))  # (4, 2)
    pictures = [flip(data, flips.expand(len(data.images), 2)).images for flips in mirrorings]
    torch.optim.swa_utils.update_bn(pictures, model)


@torch.no_grad()
def detect(model: DetectionModel, images: Tensor) -> Detections:
    """What the model finds, in eval mode."""
    detections = model.eval()(images)
    if not isinstance(detections, Detections):
        raise TypeError(f"the model gave {type(detections).__name__} in eval mode")
    return detections


def count_trees(predictions: Tensor, data: Data) -> list[Found]:
    """Per picture, how many trees are found and how many reported boxes are right."""
    size = data.images.shape[-1]
    trees = xywh2xyxy(data.batch["bboxes"] * size)
    return [
        count_found(reported_boxes(predictions[index], CONFIDENCE), trees[data.batch["batch_idx"] == index])
        for index in range(len(predictions))
    ]


def write_results(out: Path, model: DetectionModel, losses: Losses, found: list[Found], seconds: float) -> None:
    """Weights and numbers of a run, in a folder that is made for them."""
    out.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), out / "weights.safetensors")
    report = {
        "loss_items_first": losses.first,
        "loss_items_last": losses.last,
        "seconds": round(seconds, 1),
        "confidence": CONFIDENCE,
        "pictures": {
            name: {**counts._asdict(), "recall": counts.recall, "precision": counts.precision}
            for name, counts in zip(NAMES, found, strict=True)
        },
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="updates, each on both pictures")
    parser.add_argument("--size", type=int, default=416, help="side of the pictures in pixels, a multiple of 32")
    parser.add_argument("--out", type=Path, default=Path("out/train"), help="folder for weights, report and maps")
    parser.add_argument("--sample", type=Path, help="where to write the maps instead of OUT/sample.npz")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, report, write."""
    options = parse_arguments(arguments)
    torch.manual_seed(SEED)
    data = load_data(options.size)
    model = DetectionModel(DetectorConfig("n", nc=1))
    start = time.perf_counter()
    losses = train(model, data, options.steps)
    seconds = time.perf_counter() - start
    predictions, maps = detect(model, data.images)
    found = count_trees(predictions, data)
    write_results(options.out, model, losses, found, seconds)
    sample_path = options.sample or options.out / "sample.npz"
    labels = load_labels()
    save_sample(sample_path, Sample([m.numpy() for m in maps], labels, (options.size, options.size), NAMES))

    for title, items in (("first", losses.first), ("last", losses.last)):
        print(f"{title} step: loss {sum(items):.3f} = box {items[0]:.3f} + cls {items[1]:.3f} + dfl {items[2]:.3f}")
    print(f"{options.steps} steps in {seconds:.0f} s; boxes of probability {CONFIDENCE} and more, hits at IoU 0.5:")
    for name, counts in zip(NAMES, found, strict=True):
        print(
            f"{name}: {counts.hits} of {counts.trees} trees found (recall {counts.recall:.2f}), "
            f"{counts.reported} reported (precision {counts.precision:.2f})"
        )
    print(f"written: {options.out}, {sample_path}")


if __name__ == "__main__":
    main()

"""Train the n detector with the loss and the gradients of the service: ``python -m examples.train_remote``.

This process has the detector and its optimiser, and no loss code. First it trains from random weights. Then it goes on
from what it has learned for some steps, another process does the same with the loss in torch, and the losses are
compared. From random weights they could not be: there a difference in the last digit of the gradients, from whatever
source, changes which anchors are chosen, and within some twenty steps the runs are apart
(``python -m examples.train_detector --gradient-noise 6e-8`` beside one without).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from examples.service import export_once, running_service
from examples.training import Criterion, count_trees, detect, fine_tune, load_data, new_detector, print_found, train
from yolo_assigner.serve.client import AssignerClient

TOLERANCE = 1e-4
NUM_CLASSES = 1
LOSS_CODE = {"yolo_loss.assigner", "yolo_loss.criterion", "yolo_loss.losses"}


def remote_criterion(client: AssignerClient) -> Criterion:
    """Loss and terms as the training loop takes them."""
    criterion = client.criterion()

    def loss_and_items(feats: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, items, _ = criterion.evaluate(feats, batch)
        return loss, items

    return loss_and_items


def train_remotely(url: str, options: argparse.Namespace, weights: Path) -> list[list[float]]:
    """Train, write the weights, and go on from them; the terms of the second part's steps."""
    data, model = load_data(options.size), new_detector()
    with AssignerClient(url) as client:
        criterion = remote_criterion(client)
        history = train(model, criterion, data, options.steps)
        weights.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(model.state_dict(), weights)
        print(f"loss {sum(history[0]):.3f} to {sum(history[-1]):.3f}")
        print_found(count_trees(detect(model, data.images).predictions, data))
        history = fine_tune(model, criterion, data, options.more_steps)
    if loaded := LOSS_CODE & sys.modules.keys():
        raise RuntimeError(f"this process was to have no loss code, but loaded {', '.join(sorted(loaded))}")
    return history


def go_on_locally(options: argparse.Namespace, weights: Path) -> list[list[float]]:
    """The second part with the loss in torch, in a process of its own."""
    out = weights.parent / "local"
    words = (
        "--steps",
        str(options.more_steps),
        "--size",
        str(options.size),
        "--weights",
        str(weights),
        "--out",
        str(out),
    )
    subprocess.run([sys.executable, "-m", "examples.train_detector", *words], check=True)
    history: list[list[float]] = json.loads((out / "report.json").read_text(encoding="utf-8"))["loss_items"]
    return history


def differences(remote: list[list[float]], local: list[list[float]]) -> list[float]:
    """Per step the largest difference of a term over the sum of the local terms."""
    return [
        max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) / sum(theirs)
        for ours, theirs in zip(remote, local, strict=True)
    ]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="updates from random weights, each on both pictures")
    parser.add_argument("--more-steps", type=int, default=50, help="updates after them, compared with local ones")
    parser.add_argument("--size", type=int, default=416, help="side of the pictures in pixels, a multiple of 32")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="folder of the exported models")
    parser.add_argument("--out", type=Path, default=Path("out/train_remote"), help="folder for weights and reports")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train both ways and compare; 0 when the last losses agree."""
    options = parse_arguments(arguments)
    weights = options.out / "weights.safetensors"
    export_once(options.artifacts, NUM_CLASSES, ("loss_grad",))
    with running_service(options.artifacts) as url:
        remote = train_remotely(url, options, weights)
    local = go_on_locally(options, weights)
    apart = differences(remote, local)
    print("\nstep  remote loss  local loss  difference")
    for step in sorted({0, options.more_steps // 2, options.more_steps - 1}):
        print(f"{step + 1:4d}  {sum(remote[step]):11.6f}  {sum(local[step]):10.6f}  {apart[step]:10.1e}")
    agrees = apart[-1] <= TOLERANCE
    print(f"the last losses {'agree' if agrees else 'DIFFER'}: {apart[-1]:.1e} relative, allowed are {TOLERANCE:.0e}")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())

"""Train the n detector with a loop of torch alone. Run ``python -m examples.train_plain``."""

from __future__ import annotations

import argparse

import torch

from examples.trees import make_loader
from yolo_assigner.models import DetectionModel, DetectorConfig
from yolo_loss import v8DetectionLoss


def main(arguments: list[str] | None = None) -> None:
    """Train and print the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="each is one step on both pictures")
    parser.add_argument("--size", type=int, default=192, help="side of the pictures in pixels, a multiple of 32")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DetectionModel(DetectorConfig("n", nc=1)).to(device).train()
    criterion = v8DetectionLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(options.epochs):
        for images, batch in make_loader(options.size):
            loss, items = criterion(model(images.to(device)), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            box, cls, dfl = items.tolist()
            print(f"epoch {epoch}: loss {loss.item():.3f}, box {box:.3f}, cls {cls:.3f}, dfl {dfl:.3f}")


if __name__ == "__main__":
    main()

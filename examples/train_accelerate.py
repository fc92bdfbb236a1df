"""Train the n detector with Hugging Face's accelerate. Run ``python -m examples.train_accelerate``.

``accelerate launch -m examples.train_accelerate`` does the same on the devices that accelerate is set up for.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from examples.trees import make_loader
from yolo_assigner.models import DetectionModel, DetectorConfig
from yolo_loss import v8DetectionLoss


def main(arguments: list[str] | None = None) -> None:
    """Train and print the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="each is one step on both pictures")
    parser.add_argument("--size", type=int, default=192, help="side of the pictures in pixels, a multiple of 32")
    options = parser.parse_args(arguments)

    set_seed(0)
    accelerator = Accelerator()
    model = DetectionModel(DetectorConfig("n", nc=1)).train()
    criterion = v8DetectionLoss(model)  # before prepare: it reads numbers from the model and keeps no reference
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, make_loader(options.size))
    for epoch in range(options.epochs):
        for images, batch in loader:
            loss, _items = criterion(model(images), batch)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()

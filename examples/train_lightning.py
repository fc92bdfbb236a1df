"""Train the n detector with Lightning. Run ``python -m examples.train_lightning``."""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from torch import Tensor

from examples.trees import make_loader
from yolo_assigner.models import DetectionModel, DetectorConfig
from yolo_loss import v8DetectionLoss


class Detector(lightning.LightningModule):  # type: ignore[misc, unused-ignore]
    """The detector, its loss and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = DetectionModel(DetectorConfig("n", nc=1))
        self.criterion = v8DetectionLoss(self.detector)

    def training_step(self, data: tuple[Tensor, dict[str, Tensor]], _index: int) -> Tensor:
        """Compute the loss of a batch, and log its terms."""
        images, batch = data
        loss: Tensor
        loss, items = self.criterion(self.detector(images), batch)
        self.log_dict(dict(zip(self.criterion.loss_names, items, strict=True)), prog_bar=True, batch_size=len(images))
        print(f"epoch {self.current_epoch}: loss {loss.item():.3f}")
        return loss

    def configure_optimizers(self) -> Any:
        """Create the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(arguments: list[str] | None = None) -> None:
    """Train and print the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="each is one step on both pictures")
    parser.add_argument("--size", type=int, default=192, help="side of the pictures in pixels, a multiple of 32")
    options = parser.parse_args(arguments)

    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        max_epochs=options.epochs, logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    trainer.fit(Detector(), make_loader(options.size))


if __name__ == "__main__":
    main()

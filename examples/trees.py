"""The two sample pictures as a dataset with torchvision's targets, and its collate function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from examples.dataset import load_labels, load_pictures
from yolo_loss.boxes import xywh2xyxy
from yolo_loss.targets import from_torchvision

Target = dict[str, Tensor]


class Trees(Dataset[tuple[Tensor, Target]]):
    """A picture (3, size, size) in [0, 1], with ``boxes`` (N, 4) pixel xyxy and ``labels`` (N,) of its trees.

    Args:
        size: Side of the pictures in pixels.
    """

    def __init__(self, size: int) -> None:
        self.pictures = torch.from_numpy(load_pictures(size))
        columns = {key: torch.from_numpy(column) for key, column in load_labels().items()}
        self.image, self.labels = columns["batch_idx"], columns["cls"]
        self.boxes = xywh2xyxy(columns["bboxes"] * size)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        own = self.image == index
        return self.pictures[index], {"boxes": self.boxes[own], "labels": self.labels[own]}


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (B, 3, H, W), and their ground truth as the loss takes it."""
    images = torch.stack([image for image, _ in samples])
    return images, from_torchvision([target for _, target in samples], images.shape[-2:], num_classes=1)


def make_loader(size: int) -> DataLoader[Any]:
    """Batches of both pictures."""
    return DataLoader(Trees(size), batch_size=2, shuffle=True, collate_fn=collate)

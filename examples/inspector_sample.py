"""The sample that the service's inspector shows: ``python -m examples.inspector_sample`` writes it anew.

It is the committed sample, both pictures with what a half-trained detector's head sends, explained with four labels
added to the first picture that show what can go wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.dataset import FOLDER, Batch, load_sample
from yolo_loss import DetectionLoss
from yolo_loss.explain import explain_document
from yolo_loss.explain.document import dump_document

STATIC = Path(__file__).parents[1] / "serve" / "http" / "static" / "inspector"
LISTED_SIDE = 48.0  # pixels
# Of the first picture: centre x, centre y, width, height in pixels of 416.
ADDED = (
    (77.7, 312.7, 6.5, 6.2),  # lies between the anchors
    (336.8, 77.5, 41.4, 3.6),  # a fallen trunk, unlike anything the detector has learned
    (272.7, 189.9, 12.9, 12.5),  # part of a tree that has a label
    (210.3, 217.3, 47.6, 51.8),  # repeats a label
)
TITLE = "Sample, with four faulty labels added"


def explain_sample() -> dict[str, Any]:
    """Explain the sample with the added labels.

    Returns:
        The file's content: ``title``, ``names`` and ``pictures`` by image, and ``document``.
    """
    sample = load_sample()
    feats = [torch.from_numpy(feat) for feat in sample.feats]
    faulty = _with_faults(sample.batch, sample.image_size[0])
    batch = {name: torch.from_numpy(values) for name, values in faulty.items()}
    document = explain_document(DetectionLoss(1), feats, batch, listed_side=LISTED_SIDE)
    return {
        "title": TITLE,
        "names": sample.names,
        "pictures": [f"{name}.jpg" for name in sample.names],
        "document": json.loads(dump_document(document)),
    }


def _with_faults(batch: Batch, side: int) -> Batch:
    count = len(ADDED)
    rows = {
        "batch_idx": np.zeros(count, np.int64),
        "cls": np.zeros(count, np.int64),
        "bboxes": np.array(ADDED, np.float32) / side,
    }
    return {name: np.concatenate((values, rows[name])) for name, values in batch.items()}


def main() -> None:
    """Write the document and the pictures."""
    from PIL import Image

    content = explain_sample()
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    (STATIC / "sample.json").write_text(text + "\n", encoding="utf-8")
    for name, picture in zip(content["names"], content["pictures"], strict=True):
        with Image.open(FOLDER / f"{name}.png") as image:
            image.convert("RGB").save(STATIC / picture, quality=85)


if __name__ == "__main__":
    main()

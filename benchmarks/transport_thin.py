"""Thin assignment requests beside full ones: bytes and time of the whole call, with the served model, on loopback.

``python -m benchmarks.transport_thin``. 16 images of 640 x 640 pixels with 30 boxes each and 80 classes, float32:

* ``trees``: boxes of the sample's two aerial pictures in their eight orientations, of three classes in each image;
* ``trees, random classes``: the same boxes, each of any class;
* ``large boxes``: those that ``export verify`` draws, with sides up to 0.7 of the image.

A request is sent in full; as the client does by default, which is one request with each image's own anchors; and one
image at a time with the fewest bytes. The ways take turns in one process, and their targets are compared to the bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.report import RESULTS, Goal, goals_table, machine, table, write_json
from benchmarks.common.timing import median_ratio, take_turns
from benchmarks.transport import MB, WARM_UP
from examples.dataset import load_sample
from tests.exports import exported
from tests.served import serving
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_assigner.serve.client import AssignerClient
from yolo_assigner.serve.detection.grid import anchor_points
from yolo_assigner.serve.wire.dtypes import Array

IMAGES, SLOTS, SIDE, CLASSES = 16, 30, 640, 80
STRIDES = (8, 16, 32)
PER_IMAGE = 3  # classes of an image
GIGABIT = 1e9 / 8  # bytes a second
WAYS: dict[str, dict[str, Any]] = {"full": {"thin": False}, "default": {}, "apart": {"request_bytes": 0}}
NAMES = ("pd_scores", "pd_bboxes", "anc_points", "gt_labels", "gt_bboxes", "mask_gt")


class CountingClient(AssignerClient):
    """A client that counts the bytes of the tensors that it sends and receives."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.counts: list[int] = []  # of each request; threads append to it

    def infer(self, model: str, arrays: Mapping[str, Array], *more: Any, **named: Any) -> dict[str, Array]:
        """Count, and send."""
        replies = super().infer(model, arrays, *more, **named)
        self.counts.append(sum(array.nbytes for array in (*arrays.values(), *replies.values())))
        return replies


def main() -> int:
    """Measure, write the JSON, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport_thin", description=__doc__)
    parser.add_argument("--turns", type=int, default=15, help="turns that count, after three that do not")
    parser.add_argument("--out", type=Path, default=RESULTS / "transport_thin.json")
    options = parser.parse_args()
    batches = {
        "trees": tree_inputs(PER_IMAGE),
        "trees, random classes": tree_inputs(CLASSES),
        "large boxes": large_inputs(),
    }
    with serving(exported("assigner", "sparse")) as server:
        results = {name: measure(server.port, batch, options.turns, name) for name, batch in batches.items()}
    write_json(options.out, {"machine": machine(), "batches": results})
    print(rows_table(results))
    trees = results["trees"]
    goals = [
        Goal("trees, by default, times fewer bytes", trees["default"]["times_fewer_bytes"], 20.0, True),
        Goal("trees, by default, whole call, times faster", trees["default"]["times_faster"], 4.0, True),
    ]
    print("\n" + goals_table(goals, ".1f"))
    return 0


def measure(port: int, batch: Mapping[str, Array], turns: int, name: str) -> dict[str, dict[str, float]]:
    """Megabytes and milliseconds of each way, and how much better they are than the full request's.

    Raises:
        RuntimeError: The targets differ.
    """
    with ExitStack() as stack:
        clients = {
            way: stack.enter_context(CountingClient(f"127.0.0.1:{port}", **options)) for way, options in WAYS.items()
        }
        targets = {way: client.assign(*batch.values()) for way, client in clients.items()}
        if not all(np.array_equal(*pair) for way in WAYS for pair in zip(targets[way], targets["full"], strict=True)):
            raise RuntimeError(f"the targets of {name} differ")
        sent = {way: sum(client.counts) for way, client in clients.items()}
        runs = {way: partial(client.assign, *batch.values()) for way, client in clients.items()}
        times = take_turns(runs, turns, WARM_UP, name)
    return {
        way: {
            "megabytes": count / MB,
            "milliseconds": 1000 * statistics.median(times[way]),
            "times_fewer_bytes": sent["full"] / count,
            "times_faster": median_ratio(times["full"], times[way]),
            **{f"network_ms_at_{gigabits}_gigabit": 1000 * count / GIGABIT / gigabits for gigabits in (1, 10)},
        }
        for way, count in sent.items()
    }


def tree_inputs(classes: int) -> dict[str, Array]:
    """Random predictions for real boxes.

    Args:
        classes: How many classes the boxes of an image have at most.
    """
    random = np.random.default_rng(0)
    points = anchor_points((SIDE, SIDE), STRIDES)
    boxes = np.stack([_orient(*_some_trees(random, image % 2), image // 2) for image in range(IMAGES)])
    of_image = np.stack([random.permutation(CLASSES)[:classes] for _ in range(IMAGES)])
    labels = np.take_along_axis(of_image, random.integers(0, classes, (IMAGES, SLOTS)), axis=1)
    stride = np.repeat(STRIDES, [(SIDE // stride) ** 2 for stride in STRIDES])[:, None]
    reach = stride * random.uniform(0.5, 4.0, (IMAGES, len(points), 4))
    predicted = np.concatenate((points - reach[..., :2], points + reach[..., 2:]), axis=-1)
    scores = random.random((IMAGES, len(points), CLASSES), np.float32) ** 2
    mask = np.ones((IMAGES, SLOTS, 1), np.bool_)
    values = (scores, predicted.astype(np.float32), points, labels[..., None], boxes.astype(np.float32), mask)
    return dict(zip(NAMES, values, strict=True))


def _some_trees(random: np.random.Generator, picture: int) -> tuple[Array, Array]:
    """Centres and sizes of some trees of a picture, (M, 2) each, as fractions."""
    batch = load_sample().batch
    trees: Any = batch["bboxes"][batch["batch_idx"] == picture]
    chosen = trees[random.permutation(len(trees))[:SLOTS]]
    return chosen[:, :2], chosen[:, 2:]


def _orient(centre: Array, size: Array, orientation: int) -> Array:
    """Turn and mirror boxes, (M, 4) pixel xyxy."""
    if orientation & 1:
        centre = 1 - centre
    if orientation & 2:
        centre = np.stack((1 - centre[:, 0], centre[:, 1]), axis=1)
    if orientation & 4:
        centre, size = centre[:, ::-1], size[:, ::-1]
    return np.concatenate((centre - size / 2, centre + size / 2), axis=1) * SIDE


def large_inputs() -> dict[str, Array]:
    """Inputs that ``export verify`` draws."""
    case = Case(IMAGES, SLOTS, pyramid(SIDE, SIDE, STRIDES), CLASSES)
    return dict(zip(NAMES, (tensor.numpy() for tensor in sample_assigner_inputs(case, STRIDES, seed=1)), strict=True))


def rows_table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Results as a table."""
    networks = (f"network_ms_at_{gigabits}_gigabit" for gigabits in (10, 1))
    keys = ["megabytes", "times_fewer_bytes", "milliseconds", "times_faster", *networks]
    rows = [
        (name, way, *(f"{row[key]:.1f}" for key in keys)) for name, ways in results.items() for way, row in ways.items()
    ]
    return table(("boxes", "sent", "MB", "times fewer", "ms", "times faster", "at 10 Gbit/s, ms", "at 1, ms"), rows)


if __name__ == "__main__":
    sys.exit(main())

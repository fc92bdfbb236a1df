"""Time and memory of ``yolo-assigner audit`` beside the detector's own: ``python -m benchmarks.audit``.

The data set is the sample's two photographs, copied as often as it takes. Its parts are timed in this process: reading,
the detector, explaining, writing. Then the command runs as a whole on a part of the set and on all of it, which says
how its memory grows. ``make train`` makes the weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from benchmarks.common.programs import Run, run_program
from benchmarks.common.report import RESULTS, processor, table, versions, write_json
from examples.dataset import FOLDER, NAMES
from yolo_assigner.audit.detector import load_detector, raw_maps
from yolo_assigner.audit.pictures import read_example
from yolo_assigner.audit.rows import Picture, explain_rows
from yolo_assigner.audit.shard import batch_of, criterion_of
from yolo_assigner.audit.sources import find_source
from yolo_assigner.audit.structures import LossOptions, ShardFacts
from yolo_assigner.audit.table import write_shard

WEIGHTS = Path("out/train/weights.safetensors")
SHARE = 4  # the smaller run has a quarter of the pictures
THOUSAND = 1000
T = TypeVar("T")


class Clock:
    """Adds up the seconds of the parts of a work."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def time(self, part: str, work: Callable[[], T]) -> T:
        """Do some of a part's work."""
        begun = time.perf_counter()
        result = work()
        self.seconds[part] += time.perf_counter() - begun
        return result


def copy_pictures(folder: Path, count: int) -> Path:
    """Make a data set of copies of the sample's photographs and labels."""
    shutil.rmtree(folder, ignore_errors=True)
    for part, suffix in (("images", "png"), ("labels", "txt")):
        (folder / part).mkdir(parents=True)
        for number in range(count):
            shutil.copy(FOLDER / f"{NAMES[number % len(NAMES)]}.{suffix}", folder / part / f"{number:06d}.{suffix}")
    return folder


def time_parts(data: Path, weights: Path, imgsz: int, batch: int) -> dict[str, float]:
    """Audit a data set in this process, and return the seconds of each part; the first batch warms up."""
    detector, source = load_detector(weights), find_source(data)
    criterion = criterion_of(detector.head.nc, detector.head.strides, detector.head.reg_max, LossOptions())
    target = data / "timed.parquet"
    clock = Clock()
    for first in tqdm(range(-batch, len(source.items), batch), desc="parts", file=sys.stderr):
        if first == 0:
            clock = Clock()
        items = source.items[max(first, 0) : max(first, 0) + batch]
        examples = clock.time("reading", lambda: [read_example(item, imgsz, detector.head.nc, ()) for item in items])  # noqa: B023
        images = torch.stack([example.image for example in examples])
        maps = clock.time("detector", lambda: raw_maps(detector, images))  # noqa: B023
        pictures = [Picture(example.name, example.labels.boxes) for example in examples]
        truth = batch_of(examples)
        tables = clock.time("explaining", lambda: explain_rows(criterion, maps, truth, pictures))  # noqa: B023
        facts = ShardFacts("", len(pictures), 0, len(tables.rows), (), tables.parameters, tables.tried._asdict())
        clock.time("writing", lambda: write_shard(target, tables.rows, facts))  # noqa: B023
    target.unlink()
    return clock.seconds


def run_audit(data: Path, weights: Path, imgsz: int, batch: int) -> Run:
    """Run the command as a whole."""
    out = data / "audit"
    words = ("--data", data, "--weights", weights, "--imgsz", str(imgsz), "--batch", str(batch), "--out", out)
    run = run_program(["-m", "yolo_assigner", "audit", *words, "--shard-size", str(4 * batch)])
    shutil.rmtree(out)
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--folder", type=Path, default=Path("out/audit"), help="for the data set")
    parser.add_argument("--out", type=Path, default=RESULTS / "audit.json")
    options = parser.parse_args(arguments)
    how = options.weights, options.imgsz, options.batch
    part = run_audit(copy_pictures(options.folder, options.images // SHARE), *how)
    data = copy_pictures(options.folder, options.images)
    seconds = time_parts(data, *how)
    whole = run_audit(data, *how)
    per_thousand = {name: THOUSAND * found / options.images for name, found in seconds.items()}
    per_thousand["all, as a command"] = THOUSAND * whole.seconds / options.images
    results = {
        **{name: getattr(options, name) for name in ("images", "imgsz", "batch")},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "versions": versions(("torch", "numpy", "pyarrow")),
        "seconds_per_thousand_images": {name: round(found, 1) for name, found in per_thousand.items()},
        "peak_mib": {str(options.images // SHARE): round(part.peak_mib), str(options.images): round(whole.peak_mib)},
    }
    write_json(options.out, results)
    own = per_thousand["detector"]
    rows = ((name, f"{found:.1f}", f"{found / own:.2f}") for name, found in per_thousand.items())
    print(table(("part", "seconds per thousand images", "times the detector's"), rows))
    print(f"\npeak memory: {part.peak_mib:.0f} MiB with a quarter of the pictures, {whole.peak_mib:.0f} with all")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Images a second of ``yolo-assigner assign``: ``python -m benchmarks.bulk``.

Predictions made from the sample are stored, assigned by a plain loop over files, and by the command with one process,
with several, and on Ray. Each way runs as a whole program, so that its start counts, and takes the number of threads
that it takes by itself. All have to write the same files. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.common.programs import Run, run_program
from benchmarks.common.report import RESULTS, processor, table, versions, write_json
from examples.dataset import Sample, load_sample

FOLDER = Path("out/bulk")
NOISE = 0.1  # of the maps, so that no image is another one's copy
LOOP = "plain loop"
SCRIPT = """
import sys
from pathlib import Path
from yolo_assigner.audit.assign.shard import assign_shard
from yolo_assigner.audit.sources import find_predictions, plan_target_files
from yolo_assigner.audit.structures import Settings

for shard in plan_target_files(find_predictions(Path(sys.argv[1])), Settings(), Path(sys.argv[2])):
    assign_shard(shard)
"""


def store_predictions(folder: Path, images: int, each: int) -> None:
    """Store predictions: maps of the sample's two images with noise, and their trees.

    Args:
        folder: Gets the files; those of an earlier call stay.
        images: Their number.
        each: Images of a file.
    """
    sample = load_sample()
    folder.mkdir(parents=True, exist_ok=True)
    for first in tqdm(range(0, images, each), desc="storing", file=sys.stderr):
        path = folder / f"{first:06d}.npz"
        if not path.exists():
            numbers = np.arange(first, min(first + each, images))
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **_arrays(sample, numbers))
            partial.rename(path)


def _arrays(sample: Sample, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(int(numbers[0]))
    images = numbers % len(sample.names)
    maps = {}
    for level, feat in enumerate(sample.feats):
        noise = random.standard_normal((len(numbers), *feat.shape[1:]), np.float32)
        maps[f"feat_{level}"] = (feat[images] + NOISE * noise).astype(np.float16)
    chosen = [sample.batch["batch_idx"] == image for image in images]
    return maps | {
        "batch_idx": np.repeat(np.arange(len(numbers)), [one.sum() for one in chosen]),
        "cls": np.concatenate([sample.batch["cls"][one] for one in chosen]),
        "bboxes": np.concatenate([sample.batch["bboxes"][one] for one in chosen]),
    }


def ways(workers: Sequence[int], with_ray: bool) -> Iterator[tuple[str, list[str]]]:
    """Names of the ways, with the words that begin their programs."""
    command = ["-m", "yolo_assigner", "assign"]
    yield LOOP, ["-c", SCRIPT]
    for count in workers:
        yield f"{count} process{'es' if count > 1 else ''}", [*command, "--workers", str(count)]
    if with_ray:
        yield "Ray Data", [*command, "--ray"]


def digest(folder: Path) -> str:
    """Digest of a folder's files and their names."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def measure(words: Sequence[str], inputs: Path, out: Path) -> tuple[Run, str]:
    """Run one way, and digest what it wrote."""
    shutil.rmtree(out, ignore_errors=True)
    folders = [inputs, out] if words[0] == "-c" else ["--input", inputs, "--output", out]
    run = run_program([*words, *folders])
    return run, digest(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table; 1 where two ways wrote different files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=50, help="images of a file")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="numbers of processes")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for predictions, 0.5 MB an image, and targets")
    parser.add_argument("--out", type=Path, default=RESULTS / "bulk.json")
    options = parser.parse_args(arguments)
    inputs = options.folder / f"predictions-{options.images}-{options.each}"
    store_predictions(inputs, options.images, options.each)
    with_ray = importlib.util.find_spec("ray") is not None
    rows, digests = [], set()
    for name, words in tqdm(list(ways(options.workers, with_ray)), desc="ways", file=sys.stderr):
        run, written = measure(words, inputs, options.folder / "targets")
        digests.add(written)
        measured = {"images_a_second": options.images / run.seconds, **run._asdict()}
        rows.append({"way": name, **{what: round(value, 1) for what, value in measured.items()}})
    packages = ("torch", "numpy", "pyarrow", *(["ray"] if with_ray else []))
    facts = {"images": options.images, "each": options.each, "equal": len(digests) == 1, "cores": os.cpu_count()}
    write_json(options.out, {**facts, "processor": processor(), "versions": versions(packages), "ways": rows})
    loop = rows[0]["images_a_second"]
    cells = ((r["way"], r["images_a_second"], f"{r['images_a_second'] / loop:.2f}", r["peak_mib"]) for r in rows)
    print(table(("way", "images a second", "times the plain loop", "peak memory of a process, MiB"), cells))
    return 0 if len(digests) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())

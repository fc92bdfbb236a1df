"""Ultralytics' own trainer with its losses and with ours, on pieces of the two sample pictures.

Three runs of each model with the same seed: the reference, the reference with weights that differ by 1e-7, and ours;
every step's terms and every epoch's validation are kept. Then a run with ours is stopped and resumed, and its
checkpoint is loaded where this project cannot be imported, validated and exported. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common.report import RESULTS, processor, table, versions, write_json
from benchmarks.common.torchvision_nms import complete_torchvision
from examples.dataset import FOLDER, NAMES, load_labels
from yolo_loss.integrations.ultralytics import use

MODELS = ("yolov8n", "yolo11n", "yolo26n", "yolov8n-seg")
RUNS = ("reference", "reference, weights 1e-7 off", "ours")
IMAGE, BATCH, EPOCHS, SEED = 160, 3, 3, 0
PIECE, STEP = 200, 100  # pixels of the pictures' 400


def write_dataset(folder: Path, *, polygons: bool) -> Path:
    """Cut the pictures into overlapping pieces to train on; the whole pictures are to validate.

    Args:
        folder: Where to write.
        polygons: Write boxes as polygons of four corners, for segmentation.

    Returns:
        The file that describes the data to the trainer.
    """
    from PIL import Image

    labels = load_labels()
    for index, name in enumerate(NAMES):
        with Image.open(FOLDER / f"{name}.png") as picture:
            boxes = corners(labels["bboxes"][labels["batch_idx"] == index] * picture.width)
            pieces = [
                (x, y, x + PIECE, y + PIECE) for y in range(0, PIECE + 1, STEP) for x in range(0, PIECE + 1, STEP)
            ]
            for place, area in enumerate(pieces):
                write_pair(folder / "train", f"{name}_{place}", picture.crop(area), inside(boxes, area), polygons)
            write_pair(folder / "val", name, picture, boxes, polygons)
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: train/images\nval: val/images\nnames: [tree]\n", encoding="utf-8")
    return file


def corners(boxes: NDArray[Any]) -> NDArray[Any]:
    """Xyxy of centre and size."""
    return np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), axis=1)


def inside(boxes: NDArray[Any], area: tuple[int, int, int, int]) -> NDArray[Any]:
    """Boxes clipped to an area, of which at least half is left, in its coordinates."""
    low, high = np.array(area[:2] * 2), np.array(area[2:] * 2)
    clipped = boxes.clip(low, high)
    shares = (clipped[:, 2:] - clipped[:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept: NDArray[Any] = (clipped - low)[shares >= 0.5]
    return kept


def write_pair(folder: Path, name: str, picture: Any, boxes: NDArray[Any], polygons: bool) -> None:
    """Write a picture and its labels."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    picture.save(folder / "images" / f"{name}.png")
    x1, y1, x2, y2 = boxes.T / picture.width
    columns = (x1, y1, x2, y1, x2, y2, x1, y2) if polygons else ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    lines = [" ".join(f"{value:.6f}" for value in row) for row in np.stack(columns, axis=1)]
    (folder / "labels" / f"{name}.txt").write_text("".join(f"0 {line}\n" for line in lines), encoding="utf-8")


class Run(NamedTuple):
    """One training.

    Attributes:
        names: Of the terms.
        steps: Terms of each step, in the order of ``names``.
        validation: Terms of each epoch's validation.
        scores: Precision, recall and mean average precision after the last epoch.
    """

    names: list[str]
    steps: list[list[float]]
    validation: list[list[float]]
    scores: dict[str, float]


class Trained(NamedTuple):
    """What was done with one model.

    Attributes:
        model: Its name.
        runs: By the names of ``RUNS``.
        resumed: Terms of the last validation, of the run resumed after its second epoch.
        updates: Epochs that the resumed criterion has counted; None where it counts none.
        loads_alone: Whether the checkpoint loads and predicts where this project cannot be imported.
        validated: Mean average precision at IoU 0.5 of the checkpoint, validated on its own.
        exported: Largest difference of the exported model's output from torch, over the largest output.
    """

    model: str
    runs: dict[str, Run]
    resumed: list[float]
    updates: int | None
    loads_alone: bool
    validated: float
    exported: float

    def difference(self, run: str) -> list[float]:
        """Relative difference of the terms from the reference's, the largest of each step."""
        want, got = (np.array(self.runs[name].steps) for name in (RUNS[0], run))
        return [float(step) for step in (np.abs(got - want) / np.abs(want).clip(1e-12)).max(axis=1)]


def prepare(folder: Path) -> None:
    """Keep settings of its own, and let nothing be downloaded or installed."""
    for name, value in {
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_VERBOSE": "false",
    }.items():
        os.environ[name] = value
    torch.set_num_threads(1)  # the same sums in every run
    complete_torchvision()


def replacement(model: str) -> Any:
    """Ours for a model, as a context manager."""
    return use(assigner_only=model.endswith("-seg"))


def start(model: str, data: Path, folder: Path, *callbacks: tuple[str, Callable[[Any], None]], **options: Any) -> Any:
    """Train, and return the trainer."""
    from ultralytics import YOLO

    yolo = YOLO(model)
    for event, callback in callbacks:
        yolo.add_callback(event, callback)
    yolo.train(
        data=str(data),
        epochs=EPOCHS,
        imgsz=IMAGE,
        batch=BATCH,
        nbs=BATCH,  # every batch is a step
        warmup_epochs=0,
        seed=SEED,
        device="cpu",
        workers=0,
        plots=False,
        optimizer="SGD",
        project=str(folder.parent),
        name=folder.name,
        exist_ok=True,
        verbose=False,
        **options,
    )
    return yolo.trainer


def train(model: str, data: Path, folder: Path, *, perturbed: bool = False) -> Run:
    """Train one model, and keep its terms."""
    steps: list[dict[str, float]] = []
    validation: list[dict[str, float]] = []
    callbacks: list[tuple[str, Callable[[Any], None]]] = [
        ("on_train_batch_end", lambda trainer: steps.append(plain(trainer.loss_items))),
        ("on_fit_epoch_end", lambda trainer: validation.append(plain(trainer.metrics))),
    ]
    if perturbed:
        callbacks.append(("on_pretrain_routine_end", perturb))
    start(f"{model}.yaml", data, folder, *callbacks)
    names = list(steps[0])
    return Run(
        names,
        [list(step.values()) for step in steps],
        [[epoch[f"val/{name}"] for name in names] for epoch in validation[:EPOCHS]],
        {name: value for name, value in validation[-1].items() if not name.startswith("val/")},
    )


def plain(values: Any) -> dict[str, float]:
    """Numbers by name."""
    return {name: float(value) for name, value in values.items()}


@torch.no_grad()
def perturb(trainer: Any) -> None:
    """Change every weight by up to 1e-7 of itself, as rounding would."""
    generator = torch.Generator().manual_seed(1)
    for weights in trainer.model.parameters():
        weights.mul_(1 + 1e-7 * (2 * torch.rand(weights.shape, generator=generator) - 1))
    trainer.ema.ema.load_state_dict(trainer.model.state_dict())


class StoppedError(Exception):
    """The training is stopped, as by a crash."""


def stop_after_two(trainer: Any) -> None:
    """Stop when the second epoch's checkpoint is written."""
    if trainer.epoch == 1:
        raise StoppedError


def resume(model: str, data: Path, folder: Path) -> tuple[list[float], int | None]:
    """Stop a training and resume it: terms of the last validation, and the epochs that the criterion has counted."""
    with replacement(model):
        with suppress(StoppedError):
            start(f"{model}.yaml", data, folder, ("on_model_save", stop_after_two))
        found: list[dict[str, float]] = []
        counted: list[int | None] = []
        callbacks: list[tuple[str, Callable[[Any], None]]] = [
            ("on_fit_epoch_end", lambda trainer: found.append(plain(trainer.metrics))),
            ("on_train_epoch_end", lambda trainer: counted.append(getattr(trainer.model.criterion, "updates", None))),
        ]
        start(str(folder / "weights" / "last.pt"), data, folder, *callbacks, resume=True)
    return [value for name, value in found[0].items() if name.startswith("val/")], counted[-1]


ALONE = """
import sys
sys.modules["yolo_loss"] = None
from benchmarks.common.torchvision_nms import complete_torchvision
complete_torchvision()
from ultralytics import YOLO
print(len(YOLO(sys.argv[1])(sys.argv[2], imgsz=160, verbose=False, device="cpu")))
"""


def loads_alone(checkpoint: Path, picture: Path) -> bool:
    """Whether a checkpoint loads and predicts where this project cannot be imported."""
    words = (sys.executable, "-W", "ignore", "-c", ALONE, str(checkpoint), str(picture))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == "1"


def export_difference(checkpoint: Path) -> float:
    """Export a checkpoint to ONNX, and compare its output with torch's."""
    import onnxruntime
    from ultralytics import YOLO

    file = YOLO(checkpoint).export(format="onnx", imgsz=IMAGE, simplify=False, device="cpu", verbose=False)
    images = torch.rand(1, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(file)
    got = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    model = YOLO(checkpoint).model.eval()
    model.fuse()
    with torch.no_grad():
        want: Any = model(images)
    while not isinstance(want, Tensor):
        want = want[0]
    return float(np.abs(got - want.numpy()).max() / want.abs().max())


def do_all(model: str, folder: Path) -> Trained:
    """Everything with one model."""
    from ultralytics import YOLO

    data = write_dataset(folder / "data", polygons=model.endswith("-seg"))
    runs = {RUNS[0]: train(model, data, folder / "reference")}
    runs[RUNS[1]] = train(model, data, folder / "perturbed", perturbed=True)
    with replacement(model):
        runs[RUNS[2]] = train(model, data, folder / "ours")
    resumed, updates = resume(model, data, folder / "resumed")
    checkpoint = folder / "ours" / "weights" / "last.pt"
    scores = YOLO(checkpoint).val(data=str(data), imgsz=IMAGE, device="cpu", workers=0, plots=False, verbose=False)
    alone = loads_alone(checkpoint, folder / "data" / "val" / "images" / f"{NAMES[0]}.png")
    return Trained(model, runs, resumed, updates, alone, float(scores.box.map50), export_difference(checkpoint))


def as_json(trained: Trained) -> dict[str, Any]:
    """With names for all fields."""
    return {**trained._asdict(), "runs": {name: run._asdict() for name, run in trained.runs.items()}}


def summary(results: Sequence[Trained]) -> str:
    """The table of the page."""
    head = (
        "model",
        "terms of the last step",
        "1e-7 off",
        "ours",
        "last validation, ours",
        "resumed",
        "loads",
        "export",
    )
    rows = [
        (
            trained.model,
            ", ".join(f"{term:.4f}" for term in trained.runs[RUNS[0]].steps[-1]),
            f"{max(trained.difference(RUNS[1])):.1e}",
            f"{max(trained.difference(RUNS[2])):.1e}",
            ", ".join(f"{term:.3f}" for term in trained.runs[RUNS[2]].validation[-1]),
            ", ".join(f"{term:.3f}" for term in trained.resumed),
            "yes" if trained.loads_alone else "NO",
            f"{trained.exported:.1e}",
        )
        for trained in results
    ]
    return table(head, rows)


def draw(results: Sequence[Trained], file: Path) -> None:
    """Draw the sum of the terms at each step, and the differences from the reference."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "yolo-assigner", "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, len(results), sharex=True, squeeze=False)
        for trained, curves, spread in zip(results, upper, lower, strict=True):
            for run, form in zip(RUNS, ("-", ":", "--"), strict=True):
                curves.plot([sum(step) for step in trained.runs[run].steps], form, label=run)
            spread.semilogy(trained.difference(RUNS[1]), "C1:")
            spread.semilogy(trained.difference(RUNS[2]), "C2--")
            curves.set(title=trained.model)
            spread.set(xlabel="step", ylim=(1e-8, 1))
        upper[0].set(ylabel="sum of the terms")
        lower[0].set(ylabel="largest relative difference\nfrom the reference")
        figure.legend(*upper[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(file, metadata={"Date": None})


def main() -> int:
    """Train, print the table, and write results and picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity_training", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of yaml files without their end")
    parser.add_argument("--out", type=Path, default=RESULTS / "parity_training.json", help="file of the results")
    parser.add_argument("--picture", type=Path, help="file of the picture")
    parsed = parser.parse_args()
    results: list[Trained] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        conditions = {"machine": processor(), **versions(("torch", "ultralytics"))}
        for model in parsed.models:
            results.append(do_all(model, Path(folder) / model))
            write_json(parsed.out, {"conditions": conditions, "results": [as_json(trained) for trained in results]})
            print(model, "done", file=sys.stderr)
    if parsed.picture:
        draw(results, parsed.picture)
    print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

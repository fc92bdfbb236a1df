"""Whole training steps with the reference's loss and with ours: ``python -m benchmarks.step``.

A step is forward, loss, backward and optimizer of a detector with random weights, on seeded images and boxes. The
losses take turns in one process. A loss is differentiated up to the head's maps, and then the detector: the same work
as in one backward pass, and the time in between is the loss's. Joining the levels, which the reference's own head does
for its loss, counts as forward.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.common.report import RESULTS, table, write_json
from benchmarks.contenders import PRESET, settle_allocator
from benchmarks.gpu.measure import PEAK, memory
from benchmarks.gpu.results import describe
from benchmarks.memory import growth
from yolo_assigner.models import DetectionModel, DetectorConfig
from yolo_loss import v8DetectionLoss

REFERENCE = "reference"
LOSSES = (REFERENCE, "auto", "compiled", "dense", "sparse", "triton")
DETECTORS = ("v8n", "v8s", f"v8n of the {REFERENCE}")
PARTS = ("forward", "loss", "backward", "optimizer")
LOSS = PARTS.index("loss")
PIXELS, CLASSES = (320, 640), 80
# Boxes of an image; from this many on they stand in rows, as goods on shelves do.
BOXES, SHELVES = (5, 30, 200), 100
# On a CPU a step takes seconds, and on a GPU milliseconds.
BATCH, ROUNDS, WARM_UP = {"cpu": 2, "cuda": 16}, {"cpu": 3, "cuda": 30}, {"cpu": 1, "cuda": 5}
Loss = Callable[[Any, Mapping[str, Tensor]], tuple[Tensor, object]]
Maps = list[Tensor]


class Case(NamedTuple):
    """One line of the table.

    Attributes:
        detector: One of ``DETECTORS``.
        pixels: Side of the images.
        batch: B.
        boxes: Boxes of each image.
    """

    detector: str
    pixels: int
    batch: int
    boxes: int


class Moments:
    """Moments of one step: by the clock, or on a GPU by events in its stream."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []
        if self._on_gpu:
            torch.cuda.synchronize(device)

    def mark(self) -> None:
        """Keep the present moment."""
        if not self._on_gpu:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def milliseconds(self) -> list[float]:
        """Times between the moments."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if not self._on_gpu:
            return [1000 * (end - begin) for begin, end in pairs]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in pairs]


class Trainer:
    """A detector that is trained by several losses in turn.

    Args:
        case: Detector and sizes.
        losses: Some of ``LOSSES``.
        device: Device to train on.
        amp: Whether forward and loss run under bfloat16 autocast.

    Attributes:
        detector: The detector.
    """

    def __init__(self, case: Case, losses: Sequence[str], device: torch.device, amp: bool = False) -> None:
        torch.manual_seed(0)
        self._device, self._amp = device, amp
        self._theirs = REFERENCE in case.detector
        self.detector = make_detector(case.detector).to(device).train()
        self._optimizer = torch.optim.SGD(self.detector.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
        self._losses = {name: make_loss(name, self.detector) for name in losses}
        self._images = torch.rand(case.batch, 3, case.pixels, case.pixels, device=device)
        self._batch = {name: values.to(device) for name, values in make_batch(case.batch, case.boxes).items()}

    def step(self, name: str) -> list[float]:
        """Train one step with a loss; milliseconds of each of ``PARTS``."""
        moments = Moments(self._device)
        moments.mark()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._amp):
            output = self.detector(self._images)
            maps = self._inputs(name, output)
            moments.mark()
            leaves = [level.detach().requires_grad_() for level in maps]
            loss, _ = self._losses[name](self._form(leaves, output), self._batch)
        loss.sum().backward()
        moments.mark()
        torch.autograd.backward(maps, [leaf.grad for leaf in leaves])
        moments.mark()
        self._optimizer.step()
        self._optimizer.zero_grad()
        moments.mark()
        return moments.milliseconds()

    def _inputs(self, name: str, output: Any) -> Maps:
        """What a loss differentiates by: the raw maps, or boxes and scores of all levels for the reference."""
        if self._theirs:
            return [output["boxes"], output["scores"]]
        if name != REFERENCE:
            return list(output)
        channels = output[0].shape[1] - CLASSES
        parts = ([level[:, :channels] for level in output], [level[:, channels:] for level in output])
        return [torch.cat([level.flatten(2) for level in part], dim=2) for part in parts]

    def _form(self, leaves: Maps, output: Any) -> Any:
        """The inputs in the form in which a criterion takes them."""
        if len(leaves) != 2:
            return leaves
        feats = output["feats"] if self._theirs else output
        return {"boxes": leaves[0], "scores": leaves[1], "feats": feats}


def make_detector(name: str) -> nn.Module:
    """Make a detector of 80 classes with random weights."""
    if REFERENCE not in name:
        return DetectionModel(DetectorConfig(name.removeprefix("v8"), nc=CLASSES))
    from ultralytics import YOLO

    detector: nn.Module = YOLO("yolov8n.yaml").model
    detector.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)  # type: ignore[assignment]
    return detector


def make_loss(name: str, detector: nn.Module) -> Loss:
    """Make one of ``LOSSES``."""
    if name == REFERENCE:
        from ultralytics.utils.loss import v8DetectionLoss as Reference

        reference: Loss = Reference(detector)
        return reference
    compiled = name == "compiled"
    return v8DetectionLoss(
        detector, preset=PRESET, implementation="auto" if compiled else name, compile_kernels=compiled
    )


def make_batch(images: int, boxes: int) -> dict[str, Tensor]:
    """Make a training batch of seeded boxes.

    Args:
        images: B.
        boxes: Boxes of each image: of all sizes, or from ``SHELVES`` on in rows of 20.

    Returns:
        ``batch_idx`` (T,), ``cls`` (T, 1) and normalized ``bboxes`` (T, 4), T = images x boxes.
    """
    generator = torch.Generator().manual_seed(boxes)
    shape = (images, boxes, 2)
    if boxes < SHELVES:
        size = 0.04 + 0.6 * torch.rand(shape, generator=generator).square()
        centre = size / 2 + (1 - size) * torch.rand(shape, generator=generator)
    else:
        columns, rows = 20, -(-boxes // 20)
        cell = torch.tensor([1 / columns, 1 / rows])
        place = torch.stack((torch.arange(boxes) % columns, torch.arange(boxes) // columns), dim=-1)
        centre = ((place + 0.5) * cell).expand(shape)
        size = cell * (0.7 + 0.3 * torch.rand(shape, generator=generator))
    return {
        "batch_idx": torch.arange(images).repeat_interleave(boxes).float(),
        "cls": torch.randint(CLASSES, (images * boxes, 1), generator=generator).float(),
        "bboxes": torch.cat((centre, size), dim=-1).view(-1, 4),
    }


def measure(case: Case, losses: Sequence[str], device: torch.device, options: Any, done: Callable[[], object]) -> Any:
    """Measure one case.

    Args:
        case: Detector and sizes.
        losses: Some of ``LOSSES``.
        device: Device to train on.
        options: ``rounds``, ``warm_up`` and ``amp``.
        done: Is called after each round.

    Returns:
        The case, the median of the step without the loss, and for each loss the times of all steps by ``PARTS``, the
        median of the loss, its share of a step, how much faster than with the reference the step is, and the growth of
        the peak of memory in a step in MiB.
    """
    trainer = Trainer(case, losses, device, options.amp)
    times: dict[str, list[list[float]]] = {name: [] for name in losses}
    for turn in range(options.warm_up + options.rounds):
        for name in losses:
            parts = trainer.step(name)
            if turn >= options.warm_up:
                times[name].append(parts)
        done()
    # Everything but the loss is the same work for all, and varies by more than the losses differ.
    rest = statistics.median(sum(parts) - parts[LOSS] for steps in times.values() for parts in steps)
    medians = {name: statistics.median(parts[LOSS] for parts in steps) for name, steps in times.items()}
    return {
        **case._asdict(),
        "rest_ms": rest,
        "losses": {
            name: {
                "steps_ms": times[name],
                "loss_ms": loss,
                "share": loss / (rest + loss),
                "times_faster": (rest + medians[REFERENCE]) / (rest + loss) if REFERENCE in medians else None,
                "peak_mib": peak(trainer, name, device),
            }
            for name, loss in medians.items()
        },
    }


def peak(trainer: Trainer, name: str, device: torch.device) -> float | None:
    """Growth of the peak of memory in one step, in MiB: of torch's on a GPU, of the process's on Linux."""
    if device.type == "cuda":
        return memory(lambda _: trainer.step(name), device)[PEAK]
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory that is held but free would hide what the step needs
    return growth(lambda: trainer.step(name))[0]


def cases(options: argparse.Namespace, installed: bool) -> list[Case]:
    """All lines, the detectors of the reference only where it is installed."""
    detectors = [name for name in DETECTORS if installed or REFERENCE not in name]
    if options.quick:
        return [Case(name, 64, 1, boxes) for name in detectors[::2] for boxes in (5, 120)]
    sizes = [(pixels, boxes) for pixels in PIXELS for boxes in BOXES]
    return [Case(name, pixels, options.batch, boxes) for name in detectors for pixels, boxes in sizes]


def show(rows: Sequence[Mapping[str, Any]], losses: Sequence[str]) -> str:
    """The rows as a table; in each cell the losses in their order."""

    def cell(row: Mapping[str, Any], field: str, digits: str) -> str:
        found = (row["losses"].get(name, {}).get(field) for name in losses)
        return " / ".join("" if value is None else format(value, digits) for value in found)

    fields = (("loss_ms", ".1f"), ("share", ".1%"), ("times_faster", ".3f"), ("peak_mib", ".0f"))
    lines = [
        (
            *(row["detector"], row["pixels"], f"{row['batch']} x {row['boxes']}", f"{row['rest_ms']:.0f}"),
            *(cell(row, *one) for one in fields),
        )
        for row in rows
    ]
    head = ("detector", "pixels", "B x boxes", "rest of the step, ms", "loss, ms", "share", "step, times faster", "MiB")
    return f"Losses: {' / '.join(losses)}\n\n{table(head, lines)}"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table."""
    options = parse(words)
    device = torch.device(options.device)
    installed = importlib.util.find_spec("ultralytics") is not None
    losses = [name for name in options.losses if installed or name != REFERENCE]
    if not installed:
        print("ultralytics is not installed: its loss and its detector are left out; `make bench` installs it")
    facts = {**describe(device), "threads": torch.get_num_threads()}
    settle_allocator()
    lines, rows = cases(options, installed), []
    with tqdm(total=len(lines) * (options.warm_up + options.rounds), unit="round", file=sys.stderr) as bar:
        for case in lines:
            bar.set_description(f"{case.detector}, {case.pixels} px, {case.batch} x {case.boxes}")
            rows.append(measure(case, losses, device, options, bar.update))
    write_json(options.out, {"machine": facts, "amp": options.amp, "rows": rows})
    print(show(rows, losses))
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the options; sizes that are not given are those of the device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=[REFERENCE, "auto"])
    parser.add_argument("--batch", type=int, help="images of a step; 2 on a CPU, 16 on a GPU")
    parser.add_argument("--rounds", type=int, help="rounds that count; 3 on a CPU, 30 on a GPU")
    parser.add_argument("--amp", action="store_true", help="forward and loss under bfloat16 autocast")
    parser.add_argument("--quick", action="store_true", help="small and few: to see that everything works")
    parser.add_argument("--out", type=Path, default=RESULTS / "step.json")
    options = parser.parse_args(words)
    place = torch.device(options.device).type
    options.batch = options.batch or BATCH[place]
    options.rounds = 1 if options.quick else options.rounds or ROUNDS[place]
    options.warm_up = 0 if options.quick else WARM_UP[place]
    return options


if __name__ == "__main__":
    sys.exit(main())

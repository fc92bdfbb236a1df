"""The requests of ``benchmarks.load``, with every model, size and encoding of tensors, and their shared memory."""

from __future__ import annotations

import gzip
import json
import math
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks.common.client import Payload, infer_head
from yolo_assigner.serve.wire.dtypes import Array, wire_name

ARTIFACTS = Path("out/load")  # where exported models are kept between runs
NUM_CLASSES, REG_MAX, STRIDES = 80, 16, (8, 16, 32)
NARROW = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
PACK = {"gzip": lambda raw: gzip.compress(raw, 1), "deflate": lambda raw: zlib.compress(raw, 1)}
INPUTS = "inputs-{}"  # region of a case's inputs in shared memory
# Region of a connection's outputs in prepared requests and replies; each connection puts its own number there.
OWNER = "outputs-000"
STEM = OWNER.rstrip("0")
DIRECTORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps these objects
PREFIX = f"yolo-assigner-load-{os.getpid()}-"


class Size(NamedTuple):
    """B images of height x width pixels with M slots."""

    images: int
    slots: int
    height: int
    width: int


class Case(NamedTuple):
    """One request that is sent many times.

    Attributes:
        model: Name of the model.
        size: Sizes of its inputs.
        form: How tensors travel: binary, json, fp16, bf16, gzip, deflate or shared.
        outputs: Names of the outputs to ask for; empty asks for the default ones.
        share: Weight with which it is drawn.
    """

    model: str
    size: Size
    form: str
    outputs: tuple[str, ...] = ()
    share: float = 1.0

    @property
    def name(self) -> str:
        """Name for reports."""
        images, slots, height, width = self.size
        return f"{self.model} {images}x{slots} {height}x{width} {self.form}"


TINY, SMALL, ODD = Size(1, 0, 64, 64), Size(2, 7, 128, 128), Size(3, 30, 96, 160)
NONE, MIDDLE, FULL = Size(4, 0, 320, 320), Size(8, 30, 160, 160), Size(16, 100, 64, 64)
ONE, LARGE = Size(1, 100, 640, 640), Size(16, 100, 320, 320)
# JSON is rare and small: parsing it holds the interpreter for 8 ms per MB.
TARGETS = ("target_labels", "fg_mask", "target_weights")
CASES = (
    *(Case(model, TINY, "binary", share=3) for model in ("assigner", "loss", "loss_grad")),
    *(Case(model, SMALL, form) for model in ("assigner", "loss", "loss_grad") for form in ("binary", "shared")),
    *(Case(model, SMALL, "json", share=0.3) for model in ("assigner", "loss", "loss_grad")),
    *(Case("loss", ODD, form) for form in ("binary", "fp16", "bf16", "gzip", "deflate")),
    *(Case(model, NONE, "binary") for model in ("assigner", "loss")),
    *(Case(model, MIDDLE, form) for model in ("assigner", "loss_grad") for form in ("fp16", "shared")),
    Case("assigner", MIDDLE, "binary", ("target_scores", "fg_mask")),
    Case("assigner", FULL, "json", TARGETS, 0.1),
    Case("loss", FULL, "binary", ("loss", "target_scores", *TARGETS)),
    Case("loss_grad", FULL, "shared"),
    Case("loss", ONE, "binary", ("loss_items", "image_sums")),
    Case("assigner", ONE, "fp16", TARGETS),
    Case("loss", LARGE, "binary", ("loss", "image_sums"), 0.2),
    Case("loss", LARGE, "shared", ("loss", "image_sums"), 0.2),
    Case("loss_grad", LARGE, "fp16", share=0.1),
)


def inputs_of(case: Case, seed: int) -> dict[str, Array]:
    """Random inputs of a case. Predicted boxes of the assigner are large, so that some anchors become foreground."""
    random = np.random.default_rng(seed)
    images, slots, height, width = case.size
    grids = [(height // stride, width // stride) for stride in STRIDES]
    extent = np.array((width, height))
    centre = random.uniform(0, extent, (images, slots, 2))
    reach = random.uniform(4, extent / 2, (images, slots, 2)) / 2
    truth: dict[str, Array] = {
        "gt_labels": random.integers(0, NUM_CLASSES, (images, slots, 1)),
        "gt_bboxes": np.concatenate((centre - reach, centre + reach), axis=-1).astype(np.float32),
        "mask_gt": random.random((images, slots, 1)) < 0.75,
    }
    if case.model != "assigner":
        shapes = ((images, 4 * REG_MAX + NUM_CLASSES, *grid) for grid in grids)
        maps = {f"feat_{level}": random.standard_normal(shape, np.float32) for level, shape in enumerate(shapes)}
        return maps | truth
    points = np.concatenate([_points(grid, stride) for grid, stride in zip(grids, STRIDES, strict=True)])
    half = random.uniform(4, extent / 3, (images, len(points), 2))
    boxes = np.concatenate((points - half, points + half), axis=-1)
    scores = random.random((images, len(points), NUM_CLASSES), np.float32)
    return {"pd_scores": scores, "pd_bboxes": boxes.astype(np.float32), "anc_points": points} | truth


def _points(grid: tuple[int, int], stride: int) -> Array:
    rows, columns = np.indices(grid)
    return (np.stack((columns, rows), axis=-1).reshape(-1, 2).astype(np.float32) + 0.5) * stride


def payload_of(case: Case, number: int, places: Mapping[str, int] | None = None, timeout: int | None = None) -> Payload:
    """The request of a case.

    Args:
        case: The case.
        number: Number of the case; seeds its values and names its region of inputs in shared memory.
        places: Bytes of each output that the server shall write to shared memory.
        timeout: Microseconds that the request may wait for its model.
    """
    arrays = inputs_of(case, number)
    if case.form in NARROW:
        wide = ("feat", "pd_scores")
        arrays = {name: a.astype(NARROW[case.form]) if name.startswith(wide) else a for name, a in arrays.items()}
    shared = case.form == "shared"
    rows = [_described(name, array) | _carried(case.form, array) for name, array in arrays.items()]
    if shared:
        place(rows, {name: array.nbytes for name, array in arrays.items()}, INPUTS.format(number))
    document: dict[str, Any] = {"inputs": rows, "parameters": {"binary_data_output": case.form != "json"}}
    if timeout is not None:
        document["parameters"]["timeout"] = timeout
    if case.outputs or places:
        document["outputs"] = [{"name": name} for name in case.outputs or places or ()]
    if places:
        place(document["outputs"], places, OWNER)
    text = json.dumps(document).encode()
    blobs = () if case.form in ("json", "shared") else tuple(array.tobytes() for array in arrays.values())
    body, encoding = (text, *blobs), ""
    if case.form in PACK:
        body, encoding = (PACK[case.form](b"".join(body)),), f"content-encoding: {case.form}\r\n"
    length = f"inference-header-content-length: {len(text)}\r\n" if blobs else ""
    return Payload(infer_head(case.model, sum(map(len, body)), encoding + length), body, arrays if shared else {})


def _described(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "datatype": wire_name(array.dtype), "shape": list(array.shape)}


def _carried(form: str, array: Array) -> dict[str, Any]:
    if form == "json":
        return {"data": array.ravel().tolist()}
    return {} if form == "shared" else {"parameters": {"binary_data_size": array.nbytes}}


def place(rows: list[dict[str, Any]], sizes: Mapping[str, int], region: str) -> None:
    """Add to descriptions of inputs or outputs, in the order of the sizes, their places in a region."""
    for row, offset, size in zip(rows, offsets(sizes.values()), sizes.values(), strict=True):
        where = {"region": region, "byte_size": size, "offset": offset}
        row["parameters"] = {f"shared_memory_{key}": value for key, value in where.items()}


def offsets(sizes: Iterable[int]) -> list[int]:
    """Offsets of tensors that lie one after the other, each at a multiple of 64."""
    ends = np.cumsum([0, *(math.ceil(size / 64) * 64 for size in sizes)])
    return [int(end) for end in ends[:-1]]


def region_of(owner: int) -> str:
    """Region of the outputs of a connection."""
    return f"{STEM}{owner:0{len(OWNER) - len(STEM)}d}"


@contextmanager
def objects() -> Iterator[dict[str, mmap.mmap]]:
    """Yield an empty dict of objects by region, to be filled by :func:`make`, and unlink the objects at the end."""
    made: dict[str, mmap.mmap] = {}
    try:
        yield made
    finally:
        for name in made:
            (DIRECTORY / f"{PREFIX}{name}").unlink()


def make(name: str, size: int) -> mmap.mmap:
    """Make an object that processes forked from this one share."""
    with (DIRECTORY / f"{PREFIX}{name}").open("x+b") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def fill(memory: mmap.mmap, payload: Payload) -> None:
    """Write the inputs of a request to their places."""
    arrays = list(payload.shared.values())
    for offset, array in zip(offsets(array.nbytes for array in arrays), arrays, strict=True):
        np.ndarray(array.shape, array.dtype, memory, offset)[...] = array


def written(memory: mmap.mmap, sizes: Sequence[int]) -> list[bytes]:
    """Read the outputs that a reply wrote."""
    return [memory[offset : offset + size] for offset, size in zip(offsets(sizes), sizes, strict=True)]

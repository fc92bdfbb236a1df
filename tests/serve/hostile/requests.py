"""Good requests, small and of all forms, and how a request is put together. What ``benchmarks.hostile`` begins with."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from yolo_assigner.serve.wire.dtypes import NUMPY_TYPES, Array, wire_name

NUM_CLASSES = 3
BINS = 16
STRIDES = (8, 16, 32)
MODELS = ("loss", "loss_grad", "assigner")
LENGTH = "Inference-Header-Content-Length"
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
Rows = list[dict[str, Any]]


class Request(NamedTuple):
    """A request as it goes out, but for its ``Content-Length``.

    Attributes:
        path: Of the URL.
        headers: Names and values.
        body: As sent, compressed too.
    """

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def head(self, length: int | None = None, extra: str = "") -> bytes:
        """Its first part.

        Args:
            length: What it says of its body's; None: the truth.
            extra: More headers, each with its line's end.
        """
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        length = len(self.body) if length is None else length
        return f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{lines}{extra}\r\n".encode(
            "latin-1"
        )


class Draft(NamedTuple):
    """A request that can still be changed.

    Attributes:
        model: Its model.
        document: Its JSON.
        blob: The bytes behind it.
    """

    model: str
    document: dict[str, Any]
    blob: bytes

    @property
    def rows(self) -> Rows:
        """The inputs' descriptions."""
        rows: Rows = self.document["inputs"]
        return rows

    def request(self, text: bytes | None = None, length: object = None, encoding: str | None = None) -> Request:
        """Put it together.

        Args:
            text: In place of its JSON.
            length: In place of the JSON's true length; absent when there are no bytes behind it.
            encoding: How the body is compressed.
        """
        text = json.dumps(self.document).encode() if text is None else text
        headers = [] if length is None and not self.blob else [(LENGTH, str(len(text) if length is None else length))]
        body = text + self.blob
        if encoding is not None:
            headers.append(("Content-Encoding", encoding))
            body = PACKERS[encoding](body)
        return Request(f"/v2/models/{self.model}/infer", tuple(headers), body)


def inputs_of(
    model: str, rng: random.Random, images: int | None = None, slots: int | None = None, side: int | None = None
) -> dict[str, Array]:
    """Good inputs, of one image or a few of 32 or 64 pixels where nothing else is given."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    images = rng.randint(1, 2) if images is None else images
    slots = rng.randint(0, 3) if slots is None else slots
    side = rng.choice((32, 64)) if side is None else side
    low = numbers.uniform(0, side / 2, (images, slots, 2))
    truth: dict[str, Array] = {
        "gt_labels": numbers.integers(0, NUM_CLASSES, (images, slots, 1)),
        "gt_bboxes": np.concatenate((low, low + numbers.uniform(4, side / 2, low.shape)), axis=-1).astype(np.float32),
        "mask_gt": numbers.uniform(size=(images, slots, 1)) < 0.8,
    }
    if model != "assigner":
        channels = 4 * BINS + NUM_CLASSES
        shapes = [(images, channels, side // stride, side // stride) for stride in STRIDES]
        return {
            f"feat_{level}": numbers.standard_normal(shape, np.float32) for level, shape in enumerate(shapes)
        } | truth
    anchors = sum((side // stride) ** 2 for stride in STRIDES)
    corners = numbers.uniform(0, side, (2, images, anchors, 2)).astype(np.float32)
    return {
        "pd_scores": numbers.uniform(0, 1, (images, anchors, NUM_CLASSES)).astype(np.float32),
        "pd_bboxes": np.concatenate((corners.min(axis=0), corners.max(axis=0)), axis=-1),
        "anc_points": numbers.uniform(0, side, (anchors, 2)).astype(np.float32),
    } | truth


def draft(model: str, arrays: dict[str, Array], rng: random.Random, binary: float | None = None) -> Draft:
    """Write inputs down.

    Args:
        model: Whose they are.
        arrays: In the order in which they are sent.
        rng: Decides which travel as JSON.
        binary: Share of those that travel as bytes; None: all, none or some.
    """
    share = rng.choice((0.0, 0.5, 1.0, 1.0)) if binary is None else binary
    rows: Rows = []
    blobs = []
    for name, array in arrays.items():
        row: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": wire_name(array.dtype)}
        if rng.random() < share or row["datatype"] in ("FP16", "BF16"):
            row["parameters"] = {"binary_data_size": array.nbytes}
            blobs.append(array.tobytes())
        else:
            row["data"] = [_plain(value) for value in array.ravel().tolist()]
        rows.append(row)
    document: dict[str, Any] = {"inputs": rows}
    if rng.random() < 0.5:
        document["parameters"] = {"binary_data_output": rng.random() < 0.7}
    if rng.random() < 0.3:
        document["id"] = "".join(rng.choices("ab\u00e9\U0001f600", k=4))
    return Draft(model, document, b"".join(blobs))


def _plain(value: Any) -> Any:
    """JSON has no NaN; it is ``null``."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def good(rng: random.Random, **sizes: int) -> Draft:
    """A good request."""
    model = rng.choice(MODELS)
    return draft(model, inputs_of(model, rng, **sizes), rng)


def halved(array: Array, name: str) -> Array:
    """Floats of fewer bits."""
    with np.errstate(over="ignore"):
        return array.astype(NUMPY_TYPES[name])


def good_requests() -> list[Request]:
    """One of each model, the same every time."""
    return [_good(model) for model in MODELS]


def _good(model: str) -> Request:
    rng = random.Random(model)  # noqa: S311
    return draft(model, inputs_of(model, rng, images=2, slots=3), rng, 1.0).request()


def large_reply() -> Request:
    """Gradients as JSON: tens of megabytes for three."""
    rng = random.Random(0)  # noqa: S311
    arrays = inputs_of("loss_grad", rng, images=200, slots=1)
    for name in arrays:
        if name.startswith("feat"):
            arrays[name] = halved(arrays[name], "FP16")
    made = draft("loss_grad", arrays, rng, 1.0)
    names = [{"name": name, "parameters": {"binary_data": False}} for name in ("grad_feat_0", "grad_feat_1")]
    return Draft("loss_grad", json.loads(json.dumps({"inputs": made.rows, "outputs": names})), made.blob).request()

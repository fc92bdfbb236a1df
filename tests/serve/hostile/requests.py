"""Well-formed infer requests in every encoding, and the parts from which mutations build theirs."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.serve.hostile.wire import Reply, Wire
from yolo_assigner.serve.wire.dtypes import NUMPY_TYPES, Array, wire_name

NUM_CLASSES = 3
REG_MAX = 16
STRIDES = (8, 16, 32)  # pixels
MODELS = ("loss", "loss_grad", "assigner")
LENGTH = "Inference-Header-Content-Length"
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
Rows = list[dict[str, Any]]


class Request(NamedTuple):
    """A request to be sent, without its ``Content-Length``.

    Attributes:
        path: Path of the URL.
        headers: Pairs of name and value.
        body: The body as it is sent, possibly compressed.
    """

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def head(self, length: int | None = None, extra: str = "") -> bytes:
        """Request line and headers.

        Args:
            length: Value of ``Content-Length``; None takes the body's true length.
            extra: Further header lines, each with its line end.
        """
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        length = len(self.body) if length is None else length
        return f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{lines}{extra}\r\n".encode(
            "latin-1"
        )


class Draft(NamedTuple):
    """A request whose parts can still be changed.

    Attributes:
        model: Name of the model.
        document: The JSON document.
        blob: The bytes of the tensors behind the JSON.
    """

    model: str
    document: dict[str, Any]
    blob: bytes

    @property
    def rows(self) -> Rows:
        """Descriptions of the inputs in the document."""
        rows: Rows = self.document["inputs"]
        return rows

    def request(self, text: bytes | None = None, length: object = None, encoding: str | None = None) -> Request:
        """Serialize the draft.

        Args:
            text: Bytes to send in place of the JSON document.
            length: Header value in place of the JSON's true length; the header is absent when there is no blob.
            encoding: Name in ``PACKERS`` with which the body is compressed.
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
    """Valid inputs of a model; sizes that are not given are drawn: 1 or 2 images of 32 or 64 pixels, 0 to 3 slots."""
    generator = np.random.default_rng(rng.getrandbits(32))
    images = rng.randint(1, 2) if images is None else images
    slots = rng.randint(0, 3) if slots is None else slots
    side = rng.choice((32, 64)) if side is None else side
    low = generator.uniform(0, side / 2, (images, slots, 2))
    truth: dict[str, Array] = {
        "gt_labels": generator.integers(0, NUM_CLASSES, (images, slots, 1)),
        "gt_bboxes": np.concatenate((low, low + generator.uniform(4, side / 2, low.shape)), axis=-1).astype(np.float32),
        "mask_gt": generator.uniform(size=(images, slots, 1)) < 0.8,
    }
    if model != "assigner":
        channels = 4 * REG_MAX + NUM_CLASSES
        shapes = [(images, channels, side // stride, side // stride) for stride in STRIDES]
        return {
            f"feat_{level}": generator.standard_normal(shape, np.float32) for level, shape in enumerate(shapes)
        } | truth
    anchors = sum((side // stride) ** 2 for stride in STRIDES)
    corners = generator.uniform(0, side, (2, images, anchors, 2)).astype(np.float32)
    return {
        "pd_scores": generator.uniform(0, 1, (images, anchors, NUM_CLASSES)).astype(np.float32),
        "pd_bboxes": np.concatenate((corners.min(axis=0), corners.max(axis=0)), axis=-1),
        "anc_points": generator.uniform(0, side, (anchors, 2)).astype(np.float32),
    } | truth


def draft(model: str, arrays: dict[str, Array], rng: random.Random, binary: float | None = None) -> Draft:
    """Describe inputs in a document.

    Args:
        model: Name of the model.
        arrays: Inputs in the order in which they are sent.
        rng: Decides which inputs travel as JSON.
        binary: Share of the inputs that travel as bytes; None draws all, none or half.
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
    """Replace numbers that are not finite, which JSON lacks, by None."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def good(rng: random.Random, **sizes: int) -> Draft:
    """Draft a well-formed request to a random model."""
    model = rng.choice(MODELS)
    return draft(model, inputs_of(model, rng, **sizes), rng)


def halved(array: Array, name: str) -> Array:
    """Convert floats to another type of the protocol, for example ``FP16``."""
    with np.errstate(over="ignore"):
        return array.astype(NUMPY_TYPES[name])


def good_requests() -> list[Request]:
    """One well-formed request per model, the same every time."""
    return [_good(model) for model in MODELS]


def _good(model: str) -> Request:
    rng = random.Random(model)  # noqa: S311
    return draft(model, inputs_of(model, rng, images=2, slots=3), rng, 1.0).request()


def large_reply() -> Request:
    """Request gradients as JSON: a reply of tens of megabytes, larger than any socket buffer."""
    rng = random.Random(0)  # noqa: S311
    arrays = inputs_of("loss_grad", rng, images=200, slots=1)
    for name in arrays:
        if name.startswith("feat"):
            arrays[name] = halved(arrays[name], "FP16")
    made = draft("loss_grad", arrays, rng, 1.0)
    names = [{"name": name, "parameters": {"binary_data": False}} for name in ("grad_feat_0", "grad_feat_1")]
    return Draft("loss_grad", json.loads(json.dumps({"inputs": made.rows, "outputs": names})), made.blob).request()


def ask(port: int, request: Request, timeout: float = 30.0) -> Reply:
    """Send a request on a connection of its own and return the reply. Arguments as for :class:`Wire`."""
    with Wire(port, timeout) as wire:
        wire.write([request.head() + request.body])
        return wire.reply()

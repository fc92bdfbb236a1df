"""Requests that are small to send and would be large to answer, compressed bodies, and typed JSON."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import numpy as np

from benchmarks.hostile.requests import PACKERS, Draft, Request, draft, good, inputs_of
from benchmarks.hostile.tree import mutate_tree
from yolo_assigner.serve.wire.dtypes import Array

LARGE = 2**20
OUTER: tuple[tuple[bytes, bytes, bytes], ...] = (
    (b'{"inputs":[{"name":"feat_0","shape":[1],"datatype":"FP32","data":[', b"[],", b"0]}]}"),
    (b'{"inputs":[{"name":"feat_0","shape":[1],"datatype":"FP32","data":[', b"1.5,", b"0]}]}"),
    (b'{"inputs":[{"name":"feat_0","shape":[1],"datatype":"FP32","data":[', b'"ab",', b"0]}]}"),
    (b'{"inputs":[', b'{"name":"x"},', b"{}]}"),
    (b'{"outputs":[', b'{"name":"loss"},', b'{"name":"loss"}],"inputs":[]}'),
    (b'{"x":', b"[", b""),
    (b'{"x":', b'{"a":', b""),
    (b'{"id":"', b"\\u0041", b'","inputs":[]}'),
)  # fmt: skip


def encoding(rng: random.Random) -> Request:
    """Compressed bodies, damaged, nested, in several parts, or of another kind than they say."""
    start = good(rng)
    name = rng.choice(sorted(PACKERS))
    request = start.request(encoding=name)
    body, said = request.body, name
    change = rng.randrange(8)
    if change == 1:
        damaged = bytearray(body)
        damaged[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        body = bytes(damaged)
    elif change == 2:
        body = body[: rng.randrange(len(body))]
    elif change == 3:
        body += rng.choice((body, b"\0", b"x" * 9))
    elif change == 4:
        body = PACKERS[name](body)
    elif change == 5:
        said = rng.choice(("br", "zstd", "gzip, gzip", "deflate, gzip", "identity", "", "GZIP", "x-gzip", "gzip;q=1"))
    elif change == 6:
        body = PACKERS[name](bytes(rng.choice((LARGE, 16 * LARGE))))
    elif change == 7:
        said = "gzip" if name == "deflate" else "deflate"
    headers = tuple((key, said if key == "Content-Encoding" else value) for key, value in request.headers)
    return Request(request.path, headers, body)


def bombs(rng: random.Random) -> Request:
    """Work, outputs or parsing far beyond what was sent."""
    which = rng.randrange(4)
    if which == 0:
        begin, part, end = rng.choice(OUTER)
        return Draft("loss", {}, b"").request(begin + part * (LARGE // len(part)) + end)
    if which == 1:
        return _empty(rng)
    if which == 2:
        return _zipped(rng)
    return _crowded(rng)


def _crowded(rng: random.Random) -> Request:
    """Very many boxes around all anchor points, or one around all and the others around none."""
    model = rng.choice(("loss", "loss_grad", "assigner"))
    slots = rng.choice((20_000, 40_000))
    arrays = inputs_of(model, rng, images=1, slots=slots)
    boxes = arrays["gt_bboxes"]
    boxes[:] = rng.choice(((0, 0, 64, 64), (-np.inf, -np.inf, np.inf, np.inf), (4.5, 0, 5, 64), (np.nan, 0, 64, 64)))
    if rng.random() < 0.3:
        boxes[:, 1:] = (0, 0, 1, 1)
    arrays["mask_gt"][:] = True
    return draft(model, arrays, rng, 1.0).request()


def _empty(rng: random.Random) -> Request:
    """Tensors without values whose other axes are long."""
    many = rng.choice((2**20, 2**23, 2**24, 2**31, 2**40, 2**62))
    arrays: dict[str, Array] = inputs_of("loss", rng, images=1, slots=0)
    start = draft("loss", arrays, rng, 1.0)
    for row in start.rows:
        row["shape"] = (
            [many, *row["shape"][1:2], 0, 0] if row["name"].startswith("feat") else [many, 0, row["shape"][2]]
        )
        row["parameters"] = {"binary_data_size": 0}
    return Draft("loss", start.document, b"").request(length=len(json.dumps(start.document)))


def _zipped(rng: random.Random) -> Request:
    """What unpacks to a thousand times its size."""
    name = rng.choice(sorted(PACKERS))
    request = Draft("loss", {}, b"").request(bytes(rng.choice((b" ", b"["))) * 64 * LARGE, encoding=name)
    return Request(rng.choice((request.path, "/v1/loss")), request.headers, request.body)


def typed(rng: random.Random) -> Request:
    """The JSON of ``/v1``, changed in some places."""
    path = rng.choice(("/v1/loss", "/v1/assign", "/v1/reduce"))
    document: dict[str, Any] = {
        "workers": [[[4.1, 220.5, 9.3, 5.2]], [{"box": 1, "cls": 2, "dfl": 3, "target_scores": 4}]]
    }
    if path != "/v1/reduce":
        feats = [array for name, array in inputs_of("loss", rng, images=1).items() if name.startswith("feat")]
        batch = {"batch_idx": [0, 0], "cls": [1, 2], "bboxes": [[0.5, 0.5, 0.4, 0.4], [0.2, 0.3, 0.1, 0.2]]}
        document = {"feats": [_packed(feat) for feat in feats], "batch": batch, "outputs": ["fg_mask"]}
    for _ in range(rng.randint(0, 3)):
        mutate_tree(document, rng)
    if rng.random() < 0.1 and "feats" in document:
        document["feats"] = [{"shape": [2**40, 67, 0, 0], "dtype": "float16", "base64": ""}] * 3
    return Request(path, (), json.dumps(document).encode())


def _packed(values: Array) -> dict[str, Any]:
    data = base64.b64encode(values.astype("<f2").tobytes()).decode()
    return {"shape": list(values.shape), "dtype": "float16", "base64": data}

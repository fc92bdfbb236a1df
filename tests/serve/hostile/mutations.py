"""Mutations of well-formed requests: each function draws one request of its kind.

Many are still valid, and then their answers must be right.
"""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.serve.hostile.requests import MODELS, PACKERS, Draft, Request, draft, good, halved, inputs_of
from yolo_assigner.serve.wire.dtypes import Array

INT64 = np.iinfo(np.int64)
LABELS = (INT64.min, INT64.max, -1, -2, 0, 2, 3, 4, 2**31, 2**32, -(2**32))
FLOATS = (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 0.0, -0.0, 1e30)
SIZES = (0, 1, 2, 3, 5, -1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**64, 10**30)
TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"1e-999", b"9" * 400, b"\\ud800", b'"\\ud800"', b"\xff",
    b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"[" * 200, b"]" * 9, b"{", b"}", b'"', b",", b":", b"\\", b"//x",
    b"\xef\xbb\xbf", b"0x10", b"'", b"true", b"null", b"1.", b".5", b"+1", b"01", b'{"a":' * 120,
)  # fmt: skip
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
JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 1e308, -1e308, 0.5, "", "loss", "\0", "\ufffd", "x" * 3000, [],
    {}, [[]], [0], {"name": "loss"}, "FP32", "FP16", "BYTES", "INT64", [1] * 300, {"a": {"b": [1]}}, "\U0001f600",
    "__proto__",
)  # fmt: skip


def values(rng: random.Random) -> Request:
    """Put values that no data set has into valid tensors."""
    start = rng.choice(("loss", "loss_grad", "assigner"))
    arrays = inputs_of(start, rng)
    for name in rng.sample(sorted(arrays), rng.randint(1, 3)):
        arrays[name] = _strange(arrays[name], rng)
    return draft(start, arrays, rng, rng.choice((0.0, 1.0, 1.0))).request()


def _strange(array: Array, rng: random.Random) -> Array:
    array, chosen = array.copy(), array.size
    where = [rng.randrange(chosen) for _ in range(rng.choice((1, 1, 2, chosen)))] if chosen else []
    if array.dtype == np.bool_:
        octets = array.view(np.uint8)
        octets.flat[where] = rng.choice((0, 1, 1, 2, 255))
    elif array.dtype == np.int64:
        array.flat[where] = rng.choice(LABELS)
    else:
        array.flat[where] = rng.choice(FLOATS)
        if rng.random() < 0.3:
            array = halved(array, rng.choice(("FP16", "BF16", "FP64")))
    return array


def shapes(rng: random.Random) -> Request:
    """Change shapes and sizes, so that they contradict each other or the values, or exceed any memory."""
    start = good(rng)
    for _ in range(rng.randint(1, 2)):
        row = rng.choice(start.rows)
        shape = row["shape"]
        change = rng.randrange(6)
        if change == 0:
            shape[rng.randrange(len(shape))] = rng.choice(SIZES)
        elif change == 1:
            rng.shuffle(shape)
        elif change == 2:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice(SIZES))
        elif change == 3:
            del shape[rng.randrange(len(shape))]
            shape.append(1)
        elif change == 4 and "parameters" in row:
            row["parameters"]["binary_data_size"] = rng.choice((*SIZES, row["parameters"]["binary_data_size"] + 1))
        else:
            other = rng.choice(start.rows)
            row["shape"], other["shape"] = other["shape"], row["shape"]
    return start.request()


def document(rng: random.Random) -> Request:
    """Change the structure of the JSON: junk in place of parts, parts missing, repeated or elsewhere."""
    start = good(rng, images=1)
    for _ in range(rng.randint(1, 3)):
        mutate_tree(start.document, rng)
    return start.request()


def text(rng: random.Random) -> Request:
    """Damage the text of the JSON."""
    start = good(rng, images=1)
    raw = bytearray(json.dumps(start.document).encode())
    for _ in range(rng.randint(1, 3)):
        _damage(raw, rng, TOKENS)
    length = rng.choice((None, None, None, len(raw) - 1, len(raw) + 1)) if start.blob else None
    return start.request(bytes(raw), length)


def _damage(raw: bytearray, rng: random.Random, tokens: tuple[bytes, ...]) -> None:
    place = rng.randrange(len(raw) + 1)
    change = rng.randrange(5)
    if change == 0 and place < len(raw):
        raw[place] ^= 1 << rng.randrange(8)
    elif change == 1:
        del raw[place:]
    elif change == 2:
        del raw[place : place + rng.randint(1, 40)]
    else:
        raw[place:place] = rng.choice(tokens)


def octets(rng: random.Random) -> Request:
    """Change, remove or add bytes behind the JSON."""
    model = rng.choice(("loss", "loss_grad", "assigner"))
    start = draft(model, inputs_of(model, rng), rng, 1.0)
    raw = bytearray(start.blob)
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.6 and raw:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.3:
            _damage(raw, rng, (b"\0", b"\xff" * 8, b"\x7f\xc0\0\0"))
    return Draft(model, start.document, bytes(raw)).request()


def lengths(rng: random.Random) -> Request:
    """Send a wrong length of the JSON."""
    start = good(rng)
    true = len(json.dumps(start.document).encode())
    whole = true + len(start.blob)
    lies = (0, 1, true - 1, true + 1, true // 2, whole, whole + 1, 2**31, 2**63, 10**30)
    lie: object = rng.choice(
        (*lies, -1, "", "x", "1e3", "0x10", " 5 ", f"+{true}", f"{true}.0", f"0{true}", f"{true}, {true}")
    )
    return start.request(length=lie)


def loads(rng: random.Random) -> Request:
    """Ask for models to be loaded again. Some are, which takes a second each: keep the share of these small."""
    names = ("nobody", "%2e%2e", "..%2floss", "loss%00", "Loss", "x" * 3000, "\xff")
    name = rng.choice(MODELS) if rng.random() < 0.5 else rng.choice(names)
    tree: dict[str, Any] = {}
    if rng.random() < 0.5:
        tree = {"parameters": {"config": "{}", "file:1/model": "AAAA"}}
        mutate_tree(tree, rng)
    body = json.dumps(tree).encode()
    if rng.random() < 0.2:
        body = rng.choice((b"", b"[]", b"null", b"{", b"\xff", b" " * LARGE, body + body))
    verb = rng.choice(("load", "load", "load", "unload"))
    return Request(f"/v2/repository/models/{name}/{verb}", (), body)


def encoding(rng: random.Random) -> Request:
    """Send compressed bodies that are damaged, nested, in several parts, or not compressed as the header says."""
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
    """Ask for computation, outputs or parsing out of proportion to the bytes sent."""
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
    """Put very many boxes around all anchor points, or one around all and the others around none."""
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
    """Send tensors with one axis of zero whose other axes are long."""
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
    """Send a body that decompresses to a thousand times its size."""
    name = rng.choice(sorted(PACKERS))
    request = Draft("loss", {}, b"").request(bytes(rng.choice((b" ", b"["))) * 64 * LARGE, encoding=name)
    return Request(rng.choice((request.path, "/v1/loss")), request.headers, request.body)


def typed(rng: random.Random) -> Request:
    """Send a document of ``/v1``, changed in some places."""
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


def mutate_tree(tree: Any, rng: random.Random) -> None:
    """Change one place of a JSON document in place: replace, remove, repeat or copy from elsewhere."""
    places = [(node, key) for node in _nodes(tree) for key in _keys(node, rng)]
    if not places:
        return
    node, key = rng.choice(places)
    change = rng.randrange(5)
    if change <= 1:
        node[key] = copy.deepcopy(rng.choice(JUNK))
    elif change == 2:
        del node[key]
    elif change == 3 and isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    else:
        other, name = rng.choice(places)
        node[key] = copy.deepcopy(other[name])


def _nodes(tree: Any) -> list[Any]:
    found = [tree] if isinstance(tree, dict | list) and tree else []
    children = tree.values() if isinstance(tree, dict) else tree[:8] if isinstance(tree, list) else ()
    return [*found, *(node for child in children for node in _nodes(child))]


def _keys(node: Any, rng: random.Random) -> list[Any]:
    """All keys of an object; two indices of a list, which may have thousands."""
    if isinstance(node, dict):
        return list(node)
    return [rng.randrange(len(node)) for _ in range(min(len(node), 2))]


KINDS: dict[str, tuple[Callable[[random.Random], Request], float]] = {
    "values": (values, 4.0),
    "shapes": (shapes, 4.0),
    "document": (document, 5.0),
    "text": (text, 4.0),
    "octets": (octets, 2.0),
    "lengths": (lengths, 2.0),
    "encoding": (encoding, 1.5),
    "typed": (typed, 2.0),
    "loads": (loads, 0.3),
    "bombs": (bombs, 0.15),
}

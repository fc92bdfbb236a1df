"""Mutations of good requests: each takes a source of chance and gives a request of its kind.

Many are still good, and then their answers must be right.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.hostile.bombs import LARGE, bombs, encoding, typed
from benchmarks.hostile.requests import MODELS, Draft, Request, draft, good, halved, inputs_of
from benchmarks.hostile.tree import mutate_tree
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


def values(rng: random.Random) -> Request:
    """Numbers that no data set has, in the right places."""
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
    """Shapes and sizes that do not fit each other, the values, or any machine."""
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
    """JSON of another structure: junk in place of parts, parts missing, twice, or elsewhere."""
    start = good(rng, images=1)
    for _ in range(rng.randint(1, 3)):
        mutate_tree(start.document, rng)
    return start.request()


def text(rng: random.Random) -> Request:
    """JSON that is none, or none that was meant."""
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
    """Bytes behind the JSON that are changed, missing or too many."""
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
    """A JSON length that is a lie."""
    start = good(rng)
    true = len(json.dumps(start.document).encode())
    lies = (
        0,
        1,
        true - 1,
        true + 1,
        true // 2,
        true + len(start.blob),
        true + len(start.blob) + 1,
        2**31,
        2**63,
        10**30,
    )
    lie: object = rng.choice(
        (*lies, -1, "", "x", "1e3", "0x10", " 5 ", f"+{true}", f"{true}.0", f"0{true}", f"{true}, {true}")
    )
    return start.request(length=lie)


def loads(rng: random.Random) -> Request:
    """Models that are to be loaded again. Some are, which takes a second each, so there are to be few of these."""
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

"""Changes of JSON documents."""

from __future__ import annotations

import copy
import random
from typing import Any

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 1e308, -1e308, 0.5, "", "loss", "\0", "\ufffd", "x" * 3000, [],
    {}, [[]], [0], {"name": "loss"}, "FP32", "FP16", "BYTES", "INT64", [1] * 300, {"a": {"b": [1]}}, "\U0001f600",
    "__proto__",
)  # fmt: skip


def mutate_tree(tree: Any, rng: random.Random) -> None:
    """Change one place of a JSON document."""
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
    """All of an object; two of a list, which may have thousands."""
    if isinstance(node, dict):
        return list(node)
    return [rng.randrange(len(node)) for _ in range(min(len(node), 2))]

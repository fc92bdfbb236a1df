"""Good requests whose answers are known, and one with a reply too large for any socket."""

from __future__ import annotations

import json
import random

from benchmarks.hostile.requests import MODELS, Draft, Request, draft, halved, inputs_of


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

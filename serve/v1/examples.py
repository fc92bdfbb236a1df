"""Small example requests of the v1 JSON API, made for the models that are served."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.detection.grid import count_points, level_sizes, strides_of
from yolo_assigner.serve.inference.registry import ModelInfo, ModelRegistry
from yolo_assigner.serve.wire.dtypes import Array

SEED = 0
REDUCE_EXAMPLES = {
    "rows": {
        "summary": "Two workers with two images and one",
        "value": {"workers": [[[4.1, 220.5, 9.3, 5.2], [0.0, 87.25, 0.0, 0.0]], [[7.7, 190.0, 12.5, 8.9]]]},
    }
}


def loss_examples(registry: ModelRegistry[ModelInfo]) -> dict[str, Any]:
    """Make examples of ``POST /v1/loss`` for the first loss model, if there is one."""
    models = registry.of_kind("loss")
    if not models:
        return {}
    contract = models[0].contract
    return {
        "maps": {"summary": "One image, the head's maps", "value": _maps(contract)},
        "flattened": {"summary": "Two images, flattened predictions", "value": _flattened(contract)},
        "nothing": {"summary": "An image without boxes", "value": _maps(contract) | {"batch": _batch([], [], [])}},
    }


def explain_examples(registry: ModelRegistry[ModelInfo]) -> dict[str, Any]:
    """Make examples of ``POST /v1/explain`` for the first model of kind ``explain``, if there is one."""
    models = registry.of_kind("explain")
    if not models:
        return {}
    contract = models[0].contract
    # The second box lies between the anchors.
    side = max(strides_of(contract))
    thin = [0.5, 0.5 / side, 0.5, 0.5 / side]
    batch = _batch([0, 0], [0, 0], [[0.5, 0.5, 0.6, 0.8], thin])
    return {"maps": {"summary": "One image, the head's maps", "value": _maps(contract) | {"batch": batch}}}


def assign_examples(registry: ModelRegistry[ModelInfo]) -> dict[str, Any]:
    """Make examples of ``POST /v1/assign`` for the models that are served."""
    examples: dict[str, Any] = {}
    if registry.of_kind("assigner"):
        examples["decoded"] = {"summary": "Four anchors, decoded predictions", "value": _decoded()}
    models = registry.of_kind("loss")
    if models:
        value = _maps(models[0].contract)
        examples["maps"] = {"summary": "One image, the head's maps", "value": value}
    return examples


def _decoded() -> dict[str, Any]:
    """One image of 32 x 32 with one level of stride 16 and two boxes close to two predictions."""
    return {
        "pd_scores": [[[0.9, 0.1], [0.2, 0.3], [0.1, 0.1], [0.2, 0.8]]],
        "pd_bboxes": [[[1, 1, 16, 15], [14, 0, 30, 14], [0, 15, 15, 31], [15, 17, 32, 31]]],
        "imgsz": [32, 32],
        "strides": [16],
        "batch": _batch([0, 0], [0, 1], [[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]),
    }


def _maps(contract: Contract) -> dict[str, Any]:
    parameters, strides = contract.hyperparameters, strides_of(contract)
    side = max(strides)
    channels = 4 * parameters["reg_max"] + parameters["num_classes"]
    random = np.random.default_rng(SEED)
    shapes = [(1, channels, *size) for size in level_sizes((side, side), strides)]
    feats = [_pack(random.standard_normal(shape)) for shape in shapes]
    return {"feats": feats, "batch": _batch([0], [0], [[0.5, 0.5, 0.6, 0.8]])}


def _flattened(contract: Contract) -> dict[str, Any]:
    parameters, strides = contract.hyperparameters, strides_of(contract)
    side = max(strides)
    points = count_points((side, side), strides)
    random = np.random.default_rng(SEED)
    return {
        "pred_distri": _pack(random.standard_normal((2, points, 4 * parameters["reg_max"]))),
        "pred_scores": _pack(random.standard_normal((2, points, parameters["num_classes"]))),
        "imgsz": [side, side],
        "batch": _batch([0, 1, 1], [0, 0, 0], [[0.5, 0.5, 0.6, 0.8], [0.3, 0.3, 0.5, 0.4], [0.7, 0.6, 0.5, 0.7]]),
    }


def _batch(batch_idx: list[int], cls: list[int], bboxes: list[list[float]]) -> dict[str, Any]:
    return {"batch_idx": batch_idx, "cls": cls, "bboxes": bboxes}


def _pack(values: Array) -> dict[str, Any]:
    data = base64.b64encode(values.astype("<f2").tobytes()).decode()
    return {"shape": list(values.shape), "dtype": "float16", "base64": data}

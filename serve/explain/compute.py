"""The explanation of a request: by torch, or by an exported model as the service computes it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_assigner.serve.explain.request import RequestFile

Document = dict[str, Any]


def explain_by_torch(request: RequestFile, options: Mapping[str, Any]) -> Document:
    """Explain with ``yolo_loss``, listing candidates of boxes enlarged up to the largest stride, too.

    Args:
        request: The request.
        options: Arguments of ``export.hyperparameters.Hyperparameters``; ``num_classes`` may be missing.

    Returns:
        The document of ``yolo_loss.explain.document`` as plain types.

    Raises:
        ValueError: torch is not installed, or the request or an option is not valid.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ValueError(
            "computing an explanation here needs torch; pip install 'yolo-assigner[export]', or give --artifacts with "
            "an exported model of kind explain"
        ) from error
    from yolo_assigner.export.hyperparameters import Hyperparameters
    from yolo_loss import DetectionLoss
    from yolo_loss.explain import explain_document
    from yolo_loss.explain.document import dump_document

    hyperparameters = Hyperparameters(**{"num_classes": classes_of(request, options["reg_max"]), **options})
    criterion = DetectionLoss(**hyperparameters.criterion_arguments())
    feats = [torch.from_numpy(feat) for feat in request.feats]
    batch = {name: torch.from_numpy(column) for name, column in request.batch.items()}
    side = max(*criterion.strides, criterion.assigner.params.min_box_side or 0.0)
    return plain(dump_document(explain_document(criterion, feats, batch, listed_side=side)))


def classes_of(request: RequestFile, reg_max: int) -> int:
    """The number of classes that the maps have beside the bins.

    Raises:
        ValueError: They have too few channels.
    """
    channels = request.feats[0].shape[1] if request.feats[0].ndim > 1 else 0
    if channels <= 4 * reg_max:
        raise ValueError(
            f"feat_0 has {channels} channels, but four times reg_max {reg_max} and one for each class are needed; give "
            "--reg-max"
        )
    return int(channels - 4 * reg_max)


def explain_by_model(request: RequestFile, artifacts: Path, model: str | None) -> Document:
    """Explain with an exported model, as ``POST /v1/explain`` does; no torch is loaded.

    Args:
        request: The request.
        artifacts: Folder of exported models.
        model: Name of one of kind ``explain``; None: the first.

    Returns:
        As :func:`explain_by_torch`, with the candidates that the model has.

    Raises:
        ValueError: The artifacts cannot be used.
        ServeError: There is no such model, or it refused the request or failed.
    """
    from yolo_assigner.serve.inference.batching import BatchLimits
    from yolo_assigner.serve.inference.loading import open_artifacts
    from yolo_assigner.serve.inference.local import LocalService
    from yolo_assigner.serve.inference.runners.choice import RunnerOptions
    from yolo_assigner.serve.inference.service import Operation, new_call

    service = LocalService(open_artifacts(artifacts, RunnerOptions(), BatchLimits()))
    body = json.dumps(_json_request(request, model)).encode()

    async def ask() -> bytes:
        await service.load()
        try:
            reply = await service.run(new_call(Operation.EXPLAIN), memoryview(body))
            return b"".join(bytes(chunk) for chunk in reply.chunks)
        finally:
            service.close()

    return plain(asyncio.run(ask()))


def plain(text: str | bytes) -> Document:
    """Read a document's JSON."""
    document: Document = json.loads(text)
    return document


def _json_request(request: RequestFile, model: str | None) -> dict[str, Any]:
    """The request as the JSON of ``POST /v1/explain``."""
    batch = {name: column.tolist() for name, column in request.batch.items()}
    given = {"feats": [_packed(feat) for feat in request.feats], "batch": batch}
    return given if model is None else {"model": model, **given}


def _packed(feat: NDArray[np.float32]) -> dict[str, Any]:
    text = base64.b64encode(np.ascontiguousarray(feat, "<f4").tobytes()).decode()
    return {"shape": list(feat.shape), "dtype": "float32", "base64": text}

"""The service on a device, beside float64: a server with exported models in ONNX Runtime, and this project's client."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.common.inputs import Inputs, Setting
from benchmarks.common.timing import clock
from benchmarks.gpu.correctness import Case, by_name, compare, expected, inputs_of
from benchmarks.gpu.exported import check_onnx_runtime, find_model
from benchmarks.gpu.results import Entry

if TYPE_CHECKING:
    from yolo_assigner.serve.client.client import AssignerClient

REQUESTS = 6


def service_checks(settings: Sequence[Setting], folders: Sequence[Path], kind: str, device: torch.device) -> Entry:
    """Send an assignment and a loss with gradients to a server of models.

    Args:
        settings: Sizes of an assignment and of a loss with gradients.
        folders: Folders of the exported models.
        kind: ``dense`` or ``sparse``.
        device: Where the server computes.

    Returns:
        The comparisons with float64 on the CPU, and the median milliseconds of a request.

    Raises:
        MissingError: The installed onnxruntime has no CUDA.
        ImportError: A package of the service or its client is not installed.
        ContractError: The models are missing.
        RuntimeError: The server did not start; its reason is on standard error.
    """
    from tests.served import serving
    from yolo_assigner.serve.client.client import AssignerClient

    check_onnx_runtime(device)
    path, _ = find_model(folders, "loss_grad", kind, settings[-1].classes)
    place = f"cuda:{device.index or 0}" if device.type == "cuda" else "cpu"
    found: Entry = {"checks": []}
    words = ("--engine", "onnxruntime", "--device", place)
    with serving(path.parent, *words) as server, AssignerClient(f"127.0.0.1:{server.port}") as client:
        for setting in settings:
            call = partial(ask, client, setting.task, inputs_of(Case(setting)))
            got, what = by_name(call()), f"service, {kind}, {setting.task}"
            found["checks"] += compare(what, got, expected(Case(setting)))
            found[f"{setting.task}, ms"] = 1000 * statistics.median(clock(call) for _ in range(REQUESTS))
    return found


def ask(client: AssignerClient, task: str, inputs: Inputs) -> object:
    """The service's answer in the form that a contender has."""
    if task == "assigner":
        scores, boxes, points = inputs.predictions
        return client.assign(scores, boxes, points, *inputs.truth)
    result, gradients = client.loss_and_gradients(inputs.predictions, inputs.batch)
    return result.loss, *gradients

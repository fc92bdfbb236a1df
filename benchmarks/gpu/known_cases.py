"""Whether ours in torch is right where the answer is known: the oracle in plain loops, and the committed sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import NUMBERS, STRIDES
from benchmarks.gpu.clock import settle
from benchmarks.gpu.correctness import Check, compared, joined_maps, kept_checks, widened
from benchmarks.gpu.progress import Progress
from examples.dataset import load_sample
from tests import oracle
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import DetectionLoss, TaskAlignedAssigner
from yolo_loss.assignment.triton import available

CASES = (Case(2, 5, pyramid(64, 96, STRIDES), 3), Case(1, 1, pyramid(64, 64, STRIDES), 1))


def formulations(device: torch.device) -> tuple[str, ...]:
    """All that compute there by themselves."""
    return "auto", "dense", "sparse", *(("triton",) if device.type == "cuda" and available() else ())


def oracle_checks(device: torch.device, progress: Progress | None = None) -> list[Check]:
    """Small cases beside plain loops in float64.

    Args:
        device: Where.
        progress: Keeps what each formulation gave.
    """
    return _each(device, progress or Progress(), "oracle", partial(_oracle, device))


def sample_checks(device: torch.device, progress: Progress | None = None) -> list[Check]:
    """The committed sample, from the ragged batch on.

    Args:
        device: Where.
        progress: Keeps what each formulation gave.
    """
    wanted = _step("dense", torch.device("cpu"), torch.float64, batch_there=True)
    return _each(device, progress or Progress(), "sample", partial(_sample, device, wanted))


def _each(device: torch.device, progress: Progress, what: str, check: Callable[[str], list[Check]]) -> list[Check]:
    found: list[Check] = []
    for name in progress.order(formulations(device)):
        found += kept_checks(progress, name, f"{what}, {name}", partial(check, name))
    return found


def _oracle(device: torch.device, formulation: str) -> list[Check]:
    found: list[Check] = []
    for seed, case in enumerate(CASES):
        inputs = sample_assigner_inputs(case, STRIDES, seed)
        want = oracle.assign(*(tensor.double().numpy() for tensor in inputs), **NUMBERS)
        wanted = {name: torch.from_numpy(np.array(value)) for name, value in want._asdict().items()}
        assigner = TaskAlignedAssigner(**NUMBERS, num_classes=case.num_classes, implementation=formulation)

        def got(
            assigner: TaskAlignedAssigner = assigner, inputs: tuple[Tensor, ...] = tuple(inputs)
        ) -> dict[str, Tensor]:
            result = assigner(*(tensor.to(device) for tensor in inputs))
            return {name: widened(value) for name, value in result._asdict().items()}

        found += compared(f"oracle, {case.batch} x {case.slots}, {formulation}", got, wanted, device)
    return found


def _sample(device: torch.device, wanted: dict[str, Tensor], formulation: str) -> list[Check]:
    found: list[Check] = []
    for there in (False, True):
        run = partial(_step, formulation, device, torch.float32, there)
        where = "device" if there else "CPU"
        found += compared(f"sample, {formulation}, batch on the {where}", run, wanted, device)
    return found


def _step(formulation: str, where: torch.device, dtype: torch.dtype, batch_there: bool) -> dict[str, Tensor]:
    sample = load_sample()
    batch = {name: torch.from_numpy(values) for name, values in sample.batch.items()}
    criterion = DetectionLoss(1, STRIDES, implementation=formulation)
    leaves = [torch.from_numpy(level).to(where, dtype).requires_grad_() for level in sample.feats]
    loss, _ = criterion(leaves, {name: values.to(where) if batch_there else values for name, values in batch.items()})
    gradients = torch.autograd.grad(loss, leaves)
    settle(where)
    return {"loss": widened(loss), "gradient": joined_maps([widened(part) for part in gradients])}

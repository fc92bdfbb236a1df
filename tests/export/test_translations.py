"""The operators that are translated our own way, at every rank."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from yolo_assigner.export.to_onnx.operators import TRANSLATIONS


class Chosen(nn.Module):
    """Both operators on one input."""

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Places above 0, and rows."""
        return (x > 0).nonzero(), x.index_select(0, index)


def session_of(path: Path, module: nn.Module, inputs: tuple[Tensor, ...]) -> ort.InferenceSession:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=20,
            custom_translation_table=TRANSLATIONS,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    path.write_bytes(program.model_proto.SerializeToString())
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, *inputs: Tensor) -> list[Any]:
    names = [spec.name for spec in session.get_inputs()]
    return list(session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))))


@pytest.mark.parametrize("shape", [(9,), (4, 3), (3, 2, 2)], ids=str)
def test_runs_as_torch_does(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([2, 0, 2])
    session = session_of(tmp_path / "chosen.onnx", Chosen(), (x, index))
    for numbers in (x, -x):  # another count of places, too
        for got, want in zip(run(session, numbers, index), Chosen()(numbers, index), strict=True):
            np.testing.assert_array_equal(got, want.numpy())


class Bounded(nn.Module):
    """One bound, the other, both, of floats and of whole numbers."""

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        """Each way to clamp."""
        whole = index.clamp(min=0), index.clamp(max=5), index.clamp(min=0, max=5)
        return x.clamp(min=0.0), x.clamp(max=2.0), x.clamp(0.0, 2.0), *whole


def test_a_missing_bound_is_none(tmp_path: Path) -> None:
    x = torch.tensor([-1.0, 0.5, 3.0, torch.inf, -torch.inf, torch.nan])
    index = torch.tensor([-7, 0, 3, 9, 2**40, -(2**40)])
    session = session_of(tmp_path / "bounded.onnx", Bounded(), (x, index))
    for got, want in zip(run(session, x, index), Bounded()(x, index), strict=True):
        np.testing.assert_array_equal(got, want.numpy())


class Divided(nn.Module):
    """By a number, by a tensor, and as an operator."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Each way to divide."""
        return torch.div(x, 8400, rounding_mode="floor"), torch.div(x, y, rounding_mode="floor"), (x + 63) // 64


def test_large_whole_numbers_are_divided_exactly(tmp_path: Path) -> None:
    x = torch.tensor([0, 121, 2**24 + 159, 2**24 * 8400 - 1, 2**40 + 1])
    y = torch.tensor([1, 121, 2**24 + 159, 3, 2**40])
    session = session_of(tmp_path / "divided.onnx", Divided(), (x, y))
    for got, want in zip(run(session, x, y), Divided()(x, y), strict=True):
        np.testing.assert_array_equal(got, want.numpy())

"""Translations of torch operators to ONNX, at every rank."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from tests.exports import exported
from yolo_assigner.export.to_onnx.operators import TRANSLATIONS


class Chosen(nn.Module):
    """``nonzero`` and ``index_select`` of one input."""

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices of positive entries, and rows."""
        return (x > 0).nonzero(), x.index_select(0, index)


def session_of(path: Path, module: nn.Module, inputs: tuple[Tensor, ...]) -> ort.InferenceSession:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
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
    for values in (x, -x):  # with different numbers of positive entries
        for got, want in zip(run(session, values, index), Chosen()(values, index), strict=True):
            np.testing.assert_array_equal(got, want.numpy())


class Bounded(nn.Module):
    """``clamp`` with one or both bounds, of floats and of integers."""

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        """Clamp in each way."""
        whole = index.clamp(min=0), index.clamp(max=5), index.clamp(min=0, max=5)
        return x.clamp(min=0.0), x.clamp(max=2.0), x.clamp(0.0, 2.0), *whole


def test_a_missing_bound_keeps_infinity(tmp_path: Path) -> None:
    x = torch.tensor([-1.0, 0.5, 3.0, torch.inf, -torch.inf, torch.nan])
    index = torch.tensor([-7, 0, 3, 9, 2**40, -(2**40)])
    session = session_of(tmp_path / "bounded.onnx", Bounded(), (x, index))
    for got, want in zip(run(session, x, index), Bounded()(x, index), strict=True):
        np.testing.assert_array_equal(got, want.numpy())


class Divided(nn.Module):
    """Integer division by a number, by a tensor, and by the operator."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Divide in each way."""
        return torch.div(x, 8400, rounding_mode="floor"), torch.div(x, y, rounding_mode="floor"), (x + 63) // 64


def test_large_integers_are_divided_exactly(tmp_path: Path) -> None:
    x = torch.tensor([0, 121, 2**24 + 159, 2**24 * 8400 - 1, 2**40 + 1])
    y = torch.tensor([1, 121, 2**24 + 159, 3, 2**40])
    session = session_of(tmp_path / "divided.onnx", Divided(), (x, y))
    for got, want in zip(run(session, x, y), Divided()(x, y), strict=True):
        np.testing.assert_array_equal(got, want.numpy())


class Compared(nn.Module):
    """Comparisons of two tensors, and of one with a number."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Compare in each way."""
        return x > y, x >= y, x > 0.0, x >= 0.0


def test_nothing_is_greater_than_nan(tmp_path: Path) -> None:
    """Nor in OpenVINO, whose Greater and GreaterOrEqual say so on some CPUs."""
    x = torch.tensor([torch.nan, torch.nan, 1.0, 1.0, -1.0, torch.inf])
    y = torch.tensor([torch.nan, 1.0, torch.nan, 1.0, 2.0, 1.0])
    session = session_of(tmp_path / "compared.onnx", Compared(), (x, y))
    for got, want in zip(run(session, x, y), Compared()(x, y), strict=True):
        np.testing.assert_array_equal(got, want.numpy())
    for implementation in ("dense", "sparse"):
        model = onnx.load(exported("loss_grad", implementation) / "loss_grad.onnx")
        assert not {"Greater", "GreaterOrEqual"} & {node.op_type for node in model.graph.node}

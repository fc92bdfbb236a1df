"""The operators that are translated our own way, at every rank."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from export.translations import TRANSLATIONS


class Chosen(nn.Module):
    """Both operators on one input."""

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Places above 0, and rows."""
        return (x > 0).nonzero(), x.index_select(0, index)


@pytest.mark.parametrize("shape", [(9,), (4, 3), (3, 2, 2)], ids=str)
def test_runs_as_torch_does(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([2, 0, 2])
    path = tmp_path / "chosen.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            Chosen(),
            (x, index),
            dynamo=True,
            opset_version=20,
            custom_translation_table=TRANSLATIONS,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    path.write_bytes(program.model_proto.SerializeToString())
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for numbers in (x, -x):  # another count of places, too
        feed = dict(zip([spec.name for spec in session.get_inputs()], (numbers.numpy(), index.numpy()), strict=True))
        for got, want in zip(session.run(None, feed), Chosen()(numbers, index), strict=True):
            np.testing.assert_array_equal(got, want.numpy())

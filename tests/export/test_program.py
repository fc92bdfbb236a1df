"""Tracing without decomposition: every replaced operator, and what is decomposed after all."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from yolo_assigner.export.to_onnx.operators import TRANSLATIONS
from yolo_assigner.export.to_onnx.program import trace

X = torch.randn((2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([2, 0, 1])
N = torch.export.Dim("N", max=64)


def check(path: Path, module: nn.Module, *, decomposed: bool = False) -> None:
    """Compare a module of an image and of row numbers with its model, at the traced sizes and at others."""
    program = trace(module.eval(), (X, ROWS), ({0: N}, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=20,
            custom_translation_table=TRANSLATIONS,
            input_names=["x", "rows"],
            optimize=False,
            verbose=False,
        )
    assert exported is not None
    assert (exported.exported_program is not program) == decomposed
    path.write_bytes(exported.model_proto.SerializeToString())
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for x in (X, X.flip(0)[:1], torch.cat((X, -X))):
        results = session.run(None, {"x": x.numpy(), "rows": ROWS.numpy()})
        for got, want in zip(results, module(x, ROWS), strict=True):
            np.testing.assert_array_equal(got, want.detach().numpy())


class Replaced(nn.Module):
    """All operators that are replaced or translated here."""

    def __init__(self) -> None:
        super().__init__()
        # Powers of two, so that the runtime's order of operations makes no difference.
        self.norm = nn.BatchNorm2d(3, eps=0.0, momentum=0.03)
        self.norm.running_mean = torch.tensor([0.5, -2.0, 0.0])
        self.norm.running_var = torch.tensor([4.0, 1.0, 0.25])

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Apply each once."""
        positive, large = x > 0, x.abs() > 1
        channels = x.transpose(0, 1)
        copy = torch.where(positive, x, 0.0)
        copy.copy_(torch.where(large, 1.0, copy))
        return (
            positive & large,
            positive | large,
            1 - x,
            x.square(),
            x.to(torch.float64),
            x.to(torch.float32),
            x.movedim(1, -1),
            torch.ops.aten.squeeze.dims(x[:, :1], [1]),
            x.narrow(2, 1, 2),
            channels.index_add(0, rows, channels),
            x.index_copy(1, rows, 2 * x),
            copy,
            self.norm(x),
            x.flatten(),
            x.flatten(1),
            x.flatten(0, 1),
            x.flatten(1, 2),
            x.transpose(0, 3).flatten(1, 2),
            x.flatten().unflatten(0, (x.shape[0], 60)),
            x.unflatten(2, (2, 2)),
            x.unflatten(-1, (1, 5)),
        )


def test_replaced_operators_give_what_torch_gives(tmp_path: Path) -> None:
    check(tmp_path / "replaced.onnx", Replaced())


class OverwrittenBehindView(nn.Module):
    """A write that another node sees through a view made before."""

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what the view shows after the write."""
        copy = torch.where(x > 0, x, 0.0)
        view = copy[:, 0]
        copy.copy_(torch.where(x > 1, 1.0, copy))
        return view + 1, rows + 1


class WithoutTranslation(nn.Module):
    """An operator that the exporter only decomposes."""

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Fill by a mask."""
        return torch.ops.aten.threshold(x, 0.5, 2.0), rows + 1


@pytest.mark.parametrize(
    "module",
    [OverwrittenBehindView(), WithoutTranslation()],
    ids=["overwritten behind a view", "without translation"],
)
def test_other_programs_are_decomposed(tmp_path: Path, module: nn.Module) -> None:
    check(tmp_path / "decomposed.onnx", module, decomposed=True)

"""Elementary functions and sums of the graphs: exact enough, and independent of the position in a tensor."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from yolo_assigner.export.to_onnx.operators import TRANSLATIONS

ULPS = 3.0  # units in the last place of float32
IMAGES = 7


class Functions(nn.Module):
    """The functions and sums with translations of our own, for any size."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the functions of every number and the sums of every image."""
        positive = x.abs()
        softplus = nn.functional.softplus(x, threshold=40.0)
        return torch.atan(x), torch.log1p(positive), softplus, x.sum(dim=(1, 2)), x[:, 0].sum(dim=1)


@pytest.fixture(scope="module")
def session() -> Any:
    dynamic = {0: torch.export.Dim("B"), 1: torch.export.Dim("C"), 2: torch.export.Dim("A")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Functions(),
            (torch.randn(3, 5, 7),),
            dynamo=True,
            dynamic_shapes=(dynamic,),
            custom_translation_table=TRANSLATIONS,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    model = program.model_proto.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: Any, x: np.ndarray) -> list[np.ndarray]:
    (name,) = (node.name for node in session.get_inputs())
    # Copied, because a slice of a larger array would keep its alignment in memory.
    results: list[np.ndarray] = session.run(None, {name: x.copy()})
    return results


def magnitudes() -> np.ndarray:
    """Return numbers of both signs up to the largest argument of the logarithm."""
    rng = np.random.default_rng(0)
    size = np.concatenate(
        [10.0 ** rng.uniform(-30, 0, 9000), rng.uniform(0, 16, 9000), 2.0 ** rng.uniform(0, 16, 9000)]
    )
    size = np.concatenate([np.minimum(size, 65535), [0.0, 1.0, 65535.0]])
    signed: np.ndarray = size * rng.choice([-1.0, 1.0], size.size)
    return signed.astype(np.float32).reshape(1, 1, -1)


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest error in units in the last place."""
    return float((np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32))).max())


def test_functions_are_exact_to_three_units_in_the_last_place(session: Any) -> None:
    x = magnitudes()
    wide = x.astype(np.float64)
    atan, log1p, softplus, *_ = run(session, x)
    assert ulps(atan, np.arctan(wide)) < ULPS
    assert ulps(log1p, np.log1p(np.abs(wide))) < ULPS
    assert ulps(softplus, np.logaddexp(0.0, wide)) < 2 * ULPS  # e^-|x| adds its own error


def test_empty_axes_sum_to_0(session: Any) -> None:
    for shape in ((0, 3, 9), (2, 3, 0)):
        *_, of_channels, of_one = run(session, np.ones(shape, np.float32))
        np.testing.assert_array_equal(of_channels, np.zeros(shape[0]))
        np.testing.assert_array_equal(of_one, np.zeros(shape[0]))


def test_infinities_and_nan_are_as_in_numpy(session: Any) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0], np.float32).reshape(1, 1, -1)
    atan, _, softplus, *_ = run(session, x)
    np.testing.assert_allclose(atan[0, 0], [np.pi / 2, -np.pi / 2, np.nan, 0.0], rtol=1e-7)
    np.testing.assert_allclose(softplus[0, 0], [np.inf, 0.0, np.nan, np.log(2)], rtol=1e-7)


@pytest.mark.parametrize(("channels", "anchors"), [(1, 9), (3, 189), (5, 21), (7, 525), (5, 1471), (80, 84)])
def test_results_of_an_image_do_not_depend_on_others(session: Any, channels: int, anchors: int) -> None:
    """With ONNX Runtime's Atan, Log, Softplus or ReduceSum some of these cases differ in the last bit."""
    x = np.random.default_rng(anchors).normal(size=(IMAGES, channels, anchors)).astype(np.float32) * 3
    together = run(session, x)
    for first in range(IMAGES):
        for last in range(first + 1, IMAGES + 1):
            for alone, whole in zip(run(session, x[first:last]), together, strict=True):
                np.testing.assert_array_equal(alone, whole[first:last])

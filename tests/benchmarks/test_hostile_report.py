"""When the hostile bench says that a server's memory has grown."""

from __future__ import annotations

import pytest

from benchmarks.hostile.report import growth


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([340.0, 610.0, 450.0, 480.0, 460.0, 430.0, 450.0, 520.0, 440.0], 0.978),  # medians of 460 and 450
        ([340.0, 400.0, 450.0, 500.0, 560.0, 600.0, 650.0, 700.0, 750.0], 1.25),
        ([600.0, 400.0, 500.0], 1.25),
        ([600.0, 700.0], 1.0),
        ([], 1.0),
    ],
)
def test_memory_that_grew(samples: list[float], expected: float) -> None:
    assert growth(samples) == expected

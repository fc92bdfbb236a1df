"""A model is exchanged under load and no request fails: ``benchmarks.rolling_reload``."""

from __future__ import annotations

import sys

import pytest

from benchmarks.load import cases
from benchmarks.load.cases import SMALL, Case
from benchmarks.rolling_reload import Exchange, Seen, exchange_under_load, untimely
from tests.exports import NUM_CLASSES, exported
from tests.serve.test_reload import VERSIONS


@pytest.mark.skipif(sys.platform != "linux", reason="its clients are forked")
def test_every_answer_is_from_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "NUM_CLASSES", NUM_CLASSES)  # requests for the small models of the tests
    folders = [exported("assigner", implementation, **options) for implementation, options in VERSIONS.values()]
    asked = [Case("assigner", SMALL, "binary"), Case("assigner", SMALL, "fp16")]
    results = exchange_under_load(folders, "assigner", asked, exchanges=3, connections=2)
    assert results["failed"] == []
    assert (results["exchanges"], results["neither"], results["untimely"]) == (3, 0, 0)
    assert results["A"] > 20
    assert results["B"] > 20


EXCHANGES = [Exchange("load", 10.0, 11.0, 1), Exchange("load", 20.0, 21.0, 0)]


@pytest.mark.parametrize(
    ("began", "ended", "right"),
    [
        (1.0, 2.0, {0}),
        (9.0, 10.5, {0, 1}),
        (10.2, 10.5, {0, 1}),
        (10.5, 12.0, {0, 1}),
        (11.0, 12.0, {1}),
        (15.0, 25.0, {0, 1}),
        (9.0, 25.0, {0, 1}),
        (22.0, 23.0, {0}),
    ],
)
def test_answers_of_a_version_that_was_not_there_are_found(began: float, ended: float, right: set[int]) -> None:
    assert {version for version in (0, 1) if not untimely(Seen(began, ended, version), EXCHANGES)} == right

"""The page of parity has the tables of the committed results, and these are within the limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.report import RESULTS
from benchmarks.parity_heads import LIMIT, HeadParity, heads_table
from benchmarks.parity_training import MODELS, RUNS, Run, Trained, summary

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"


def load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def heads() -> list[HeadParity]:
    return [HeadParity(**head) for head in load("parity.json")["heads"]]


@pytest.fixture(scope="module")
def trained() -> list[Trained]:
    results = load("parity_training.json")["results"]
    return [Trained(**{**one, "runs": {name: Run(**run) for name, run in one["runs"].items()}}) for one in results]


def test_the_page_has_the_tables(heads: list[HeadParity], trained: list[Trained]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert heads_table(heads) in page
    assert summary(trained) in page


def test_every_head_is_within_the_limits(heads: list[HeadParity]) -> None:
    assert len(heads) >= 2 * 28
    assert [head.model for head in heads if not head.equal] == []
    assert [head.class_weights for head in heads] == [False, True] * (len(heads) // 2)


def test_a_difference_is_found(heads: list[HeadParity]) -> None:
    assert not heads[0]._replace(decisions=1).equal
    assert not heads[0]._replace(gradient=2 * LIMIT).equal


def test_ours_stays_within_the_references_own_spread(trained: list[Trained]) -> None:
    """Ten times the spread of one perturbed run: that is a single draw of a chaotic difference."""
    assert [one.model for one in trained] == list(MODELS)
    for one in trained:
        assert one.difference(RUNS[2])[0] < LIMIT
        assert max(one.difference(RUNS[2])) <= 10 * max(one.difference(RUNS[1]))
        assert one.loads_alone
        assert one.exported < 1e-3

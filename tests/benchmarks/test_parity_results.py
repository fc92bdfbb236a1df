"""The page of parity has the table of the committed results, and these are within the limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.report import RESULTS
from benchmarks.parity_heads import LIMIT, HeadParity, heads_table

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"


def load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def heads() -> list[HeadParity]:
    return [HeadParity(**head) for head in load("parity.json")["heads"]]


def test_the_page_has_the_table(heads: list[HeadParity]) -> None:
    assert heads_table(heads) in PAGE.read_text(encoding="utf-8")


def test_every_head_is_within_the_limits(heads: list[HeadParity]) -> None:
    assert len(heads) >= 2 * 28
    assert [head.model for head in heads if not head.equal] == []
    assert [head.class_weights for head in heads] == [False, True] * (len(heads) // 2)


def test_a_difference_is_found(heads: list[HeadParity]) -> None:
    assert not heads[0]._replace(decisions=1).equal
    assert not heads[0]._replace(gradient=2 * LIMIT).equal

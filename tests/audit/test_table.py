"""The table's description in the docs is that of its schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra audit")

from yolo_assigner.audit.table import COLUMNS, schema

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "audit.md"


def test_the_page_describes_every_column() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w\[\]]+) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [tuple(column) for column in COLUMNS]
    assert [field.metadata[b"meaning"].decode() for field in schema()] == [column.meaning for column in COLUMNS]

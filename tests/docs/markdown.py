"""Code blocks, inline code, headings and links of a Markdown page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")), *DOCS]

FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]+?) -->\n\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """One fenced block.

    Attributes:
        language: The word behind the fence.
        code: Its text.
        line: Number of the line before its first one.
        mark: The text of an HTML comment before it: ``run``, or ``not run`` and the reason; empty without one.
        output: The text of a ``text`` block right behind it: what it prints. None without one.
    """

    language: str
    code: str
    line: int
    mark: str
    output: str | None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    result = []
    for match, after in zip(found, [*found, None][1:], strict=True):
        adjacent = after is not None and after["language"] == "text" and not text[match.end() : after.start()].strip()
        output = after["code"] if after is not None and adjacent else None
        line = text.count("\n", 0, match.start("code"))
        result.append(Block(match["language"], match["code"], line, match["mark"] or "", output))
    return result


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What links may name behind ``#``: each heading in small letters, words joined by hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}

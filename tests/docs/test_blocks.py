"""Python blocks run in the order of their page, in one namespace, and print what the page says.

Shell blocks run where the page marks them with ``<!-- run -->``; others set up machines or take minutes.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.markdown import DOCS, PAGES, ROOT, Block, blocks

ADDRESS = "127.0.0.1:8000"
TUTORIAL = ROOT / "docs" / "tutorial.md"
SHELL = 'yolo-assigner() { "$PYTHON" -m yolo_assigner "$@"; }\n'


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def has(page: Path, language: str) -> bool:
    return any(block.language == language for block in blocks(page))


def run(block: Block, page: Path, namespace: dict[str, Any], url: str) -> None:
    """Run a block as if it stood in its page, so that a traceback names the page's line."""
    code = "\n" * block.line + block.code.replace(ADDRESS, url.removeprefix("http://"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(page), "exec"), namespace)  # noqa: S102  (the repository's own pages)
    if block.output is not None:
        assert printed.getvalue() == block.output


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if has(page, "python") and page != TUTORIAL], ids=names)
@pytest.mark.usefixtures("workplace")
def test_python_blocks(page: Path, assumed: dict[str, Any], service: str) -> None:
    namespace = dict(assumed)
    for block in blocks(page):
        if block.language == "python" and not block.mark.startswith("not run: "):
            run(block, page, namespace, service)


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tutorial_service: str) -> None:
    """The tutorial makes all that it uses."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    ran = [block for block in blocks(TUTORIAL) if block.language == "python"]
    assert len(ran) >= 6
    for block in ran:
        run(block, TUTORIAL, namespace, tutorial_service)


MARKED = [(page, block) for page in PAGES for block in blocks(page) if block.language == "sh" and block.mark == "run"]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(
    "block", [block for _, block in MARKED], ids=[f"{names(page)}:{block.line}" for page, block in MARKED]
)
@pytest.mark.usefixtures("workplace")
def test_shell_blocks(block: Block, service: str) -> None:
    script = f"set -e\n{SHELL}{block.code.replace(ADDRESS, service.removeprefix('http://'))}"
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert '"error"' not in done.stdout
    if block.output is not None:
        assert done.stdout.strip() == block.output.strip()


def test_marks_say_why() -> None:
    marks = {block.mark for page in DOCS for block in blocks(page) if block.mark}
    assert "run" in marks
    assert all(mark == "run" or re.fullmatch(r"not run: .{5,}", mark) for mark in marks), marks


def test_a_wrong_block_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n\n<!-- run -->\n\n```sh\nls\n```\n")
    wrong, _, shell = blocks(page)
    assert (shell.code, shell.mark, shell.line) == ("ls\n", "run", 13)
    with pytest.raises(AssertionError):
        run(wrong, page, {}, "")

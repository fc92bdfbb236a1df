"""What the pages name exists: links, files, options, routes, pictures, pages of the site."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.docs.markdown import DOCS, INLINE, LINK, PAGES, ROOT, anchors, blocks, prose

COMMANDS = (
    "export onnx",
    "export verify",
    "export tensorrt",
    "export all",
    "export triton",
    "serve",
    "explain",
    "audit",
    "assign",
)
PROGRAMS = {command.split()[0] for command in COMMANDS}
# Pages whose options belong to other commands: the benchmarks'.
OTHERS = ("gpu.md", "measurements.md", "scaling.md")
FOREIGN = {"--ipc", "--http-restricted-api"}  # docker's and Triton's


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def dead_links(page: Path) -> list[str]:
    """Targets of relative links that do not exist."""
    dead = []
    for match in LINK.finditer(prose(page)):
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading: here\n[a](none.md) [b](#a-heading-here) [c](#elsewhere) [d](https://example.com)\n")
    assert dead_links(page) == ["none.md", "#elsewhere"]


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command, from its help."""
    asked = {
        command: subprocess.Popen(
            [sys.executable, "-m", "yolo_assigner", *command.split(), "--help"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for command in COMMANDS
    }
    return {
        command: set(re.findall(r"--[a-z][a-z0-9-]*", answer.communicate()[0])) for command, answer in asked.items()
    }


def command_lines() -> Iterator[tuple[str, str]]:
    """Every line of a shell block that calls a command of this project, with the page."""
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                for line in block.code.replace("\\\n", " ").splitlines():
                    code = line.partition(" #")[0]
                    if code.startswith("yolo-assigner ") and code.split()[1] in (
                        "export",
                        "serve",
                        "explain",
                        "audit",
                        "assign",
                    ):
                        yield relative(page), code


def test_options_of_command_lines(options: dict[str, set[str]]) -> None:
    lines = list(command_lines())
    assert len(lines) > 10
    for page, line in lines:
        command = next(command for command in COMMANDS if line.removeprefix("yolo-assigner ").startswith(command))
        assert set(re.findall(r"--[a-z][a-z0-9-]*", line)) <= options[command], (page, line)


def test_options_in_the_text(options: dict[str, set[str]]) -> None:
    known = set().union(*options.values()) | FOREIGN
    named = {
        (relative(page), option)
        for page in DOCS
        if page.name not in OTHERS
        for code in INLINE.findall(prose(page))
        if code.startswith("--")
        for option in re.findall(r"^--[a-z][a-z0-9-]*", code)
    }
    assert len(named) > 50
    assert {(page, option) for page, option in named if option not in known} == set()


def test_files_in_the_text() -> None:
    """Paths of this repository, as `yolo_loss/boxes.py`, in the pages for those who change the code."""
    folders = ("yolo_loss", "models", "audit", "export", "serve", "tests", "deploy", "benchmarks", "examples")
    named = {
        code
        for page in PAGES
        for code in INLINE.findall(prose(page))
        if "/" in code and code.split("/")[0] in folders and re.fullmatch(r"[\w./-]+", code)
    }
    assert len(named) > 30
    assert {path for path in named if not (ROOT / path).exists() and path != "benchmarks/results/gpu.json"} == set()


def test_the_site_has_every_page() -> None:
    def pages(entries: Any) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else pages(value)

    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    assert sorted(pages(nav)) == sorted(str(page.relative_to(ROOT / "docs")) for page in DOCS)


def table_routes() -> list[tuple[str, str]]:
    """Verb and path of every route of the protocol's table."""
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ((?:GET|POST)[^|]*) \|", text, re.MULTILINE)
    routes = []
    for part in "; ".join(cells).split("; "):
        for path in re.findall(r"`([^`]+)`", part):
            for verb in re.findall(r"[A-Z]+", part.split("`")[0]):
                short = path.replace("[/versions/{v}]", "")
                routes += [(verb, short)] + ([(verb, path.replace("[", "").replace("]", ""))] if short != path else [])
    return routes


def ask(url: str, verb: str, path: str) -> tuple[int, str]:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=120)
    try:
        connection.request(verb, path, b"" if verb == "POST" else None)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_the_table_has_every_route(service: str) -> None:
    status, text = ask(service, "GET", "/openapi.json")
    assert status == 200
    described = {
        (verb.upper(), path.replace("{name}", "{m}").replace("{version}", "{v}"))
        for path, operations in json.loads(text)["paths"].items()
        for verb in operations
    }
    described = {(verb, re.sub(r"region/\{m\}", "region/{r}", path)) for verb, path in described}
    shown = set(table_routes())
    assert {(verb, path) for verb, path in described if "cuda" not in path} <= shown
    for verb, path in sorted(shown):
        status, text = ask(service, verb, path.format(m="loss", v="1", r="nothing"))
        assert "the paths are listed at" not in text, (verb, path, status)


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="zensical is not installed")
def test_the_site_builds_strictly() -> None:
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / "out" / "docs"
    assert (site / "api" / "yolo_loss.html").is_file()
    loaded = [
        target
        for page in site.rglob("*.html")
        for target in re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text("utf-8"))
    ]
    assert loaded == []  # pages need no network

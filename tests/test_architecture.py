"""One direction: yolo_loss -> models -> export -> serve."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ORDER = ("yolo_loss", "models", "export", "serve")
ROOT = Path(__file__).parent.parent


def imported_packages(source: str) -> set[str]:
    """Top-level packages that a module's text imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def wrong_imports(package: str, source: str) -> set[str]:
    """What a file of a package imports although it comes later, or stands outside."""
    later = set(ORDER[ORDER.index(package) + 1 :])
    return imported_packages(source) & (later | {"tests", "examples", "benchmarks"})


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {path.name: found for path in files if (found := wrong_imports(package, path.read_text(encoding="utf-8")))}
    assert wrong == {}


def test_the_check_finds_a_wrong_import() -> None:
    source = "def f():\n    from serve.client import x\n    import export.build, torch\n"
    assert wrong_imports("models", source) == {"serve", "export"}
    assert wrong_imports("serve", source) == set()

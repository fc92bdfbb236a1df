"""One direction, yolo_loss -> models -> export -> serve, and one name for every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ORDER = ("yolo_loss", "models", "export", "serve")
OUTSIDE = ("tests", "examples", "benchmarks", "deploy")
ROOT = Path(__file__).parent.parent


def imported_modules(source: str) -> set[str]:
    """Full names of the modules that a text imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(module: str) -> str:
    """The package a module belongs to: one of ``ORDER`` for those of this project, else the top-level one."""
    top, _, rest = module.partition(".")
    return rest.split(".")[0] if top == "yolo_assigner" else top


def wrong_imports(package: str, source: str) -> set[str]:
    """Modules that a file of a package imports although they belong to a later package, or stand outside."""
    forbidden = {*ORDER[ORDER.index(package) + 1 :], *OUTSIDE}
    return {module for module in imported_modules(source) if package_of(module) in forbidden}


def short_names(source: str) -> set[str]:
    """Modules that a file imports by their folder's name, under which another project's would be found."""
    return {module for module in imported_modules(source) if module.split(".")[0] in ORDER[1:]}


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {path.name: found for path in files if (found := wrong_imports(package, path.read_text(encoding="utf-8")))}
    assert wrong == {}


@pytest.mark.parametrize("package", [*ORDER, *OUTSIDE])
def test_modules_are_imported_by_their_installed_names(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {path.name: found for path in files if (found := short_names(path.read_text(encoding="utf-8")))}
    assert wrong == {}


def test_the_checks_find_a_wrong_import() -> None:
    source = "def f():\n    from yolo_assigner.serve.client import x\n    import yolo_assigner.export.cli, torch\n"
    assert wrong_imports("models", source) == {"yolo_assigner.serve.client.x", "yolo_assigner.export.cli"}
    assert wrong_imports("serve", source) == set()
    assert short_names(source) == set()
    assert short_names("def f():\n    from serve import client\n    import models\n") == {"serve.client", "models"}

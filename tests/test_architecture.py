"""One direction, yolo_loss -> models -> export -> serve with audit beside, and one name for every module."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ORDER = ("yolo_loss", "models", "export", "serve")
# Stands beside export and serve: it imports those before them, and nothing imports it.
BESIDE = ("audit",)
BEFORE_BESIDE = ("yolo_loss", "models")
OUTSIDE = ("tests", "examples", "benchmarks", "deploy")
INSTALLED = ("yolo_loss", "yolo_assigner")
# Public methods of NamedTuple begin with one underscore.
PRIVATE = re.compile(r"_(?!_|replace$|asdict$|fields$|make$)\w+")
PATCHED = re.compile(r"(yolo_loss|yolo_assigner)\.[\w.]*\._")
# Private names of other projects that there is no public way around.
FOREIGN = ("tensor._get_tensor", "torch._dynamo", "interpreter._patch_lang")
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
    later = set(ORDER).difference(BEFORE_BESIDE) if package in BESIDE else {*ORDER[ORDER.index(package) + 1 :], *BESIDE}
    forbidden = later | set(OUTSIDE)
    return {module for module in imported_modules(source) if package_of(module) in forbidden}


def short_names(source: str) -> set[str]:
    """Modules that a file imports by their folder's name, under which another project's would be found."""
    return {module for module in imported_modules(source) if module.split(".")[0] in (*ORDER[1:], *BESIDE)}


def private_names(source: str) -> set[str]:
    """Private names of this project that a text reaches: imported, read from an object, or in a string to patch."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in INSTALLED:
            found |= {alias.name for alias in node.names if PRIVATE.fullmatch(alias.name)}
        elif isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            reached = ast.unparse(node)
            if not reached.startswith(("self.", "cls.", "os.", "sys.", "super()", *FOREIGN)):
                found.add(reached)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and PATCHED.match(node.value):
            found.add(node.value)
    return found


@pytest.mark.parametrize("package", [*ORDER, *BESIDE])
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {path.name: found for path in files if (found := wrong_imports(package, path.read_text(encoding="utf-8")))}
    assert wrong == {}


@pytest.mark.parametrize("package", [*ORDER, *BESIDE, *OUTSIDE])
def test_modules_are_imported_by_their_installed_names(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {path.name: found for path in files if (found := short_names(path.read_text(encoding="utf-8")))}
    assert wrong == {}


@pytest.mark.parametrize("package", OUTSIDE)
def test_no_private_name_is_reached_from_outside(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    found = {path.name: names for path in files if (names := private_names(path.read_text(encoding="utf-8")))}
    assert found == {}


def test_the_check_finds_private_names() -> None:
    patched = ".".join(("yolo_loss.boxes", "_iou"))
    source = (
        "from yolo_loss.boxes import _iou, ciou\nx = model._runner.name\ny = point._replace(x=self._z)\n"
        f"patch({patched!r})\n"
    )
    assert private_names(source) == {"_iou", "model._runner", patched}


def test_the_checks_find_a_wrong_import() -> None:
    source = "def f():\n    from yolo_assigner.serve.client import x\n    import yolo_assigner.export.cli, torch\n"
    assert wrong_imports("models", source) == {"yolo_assigner.serve.client.x", "yolo_assigner.export.cli"}
    assert wrong_imports("serve", source) == set()
    assert wrong_imports("audit", source) == {"yolo_assigner.serve.client.x", "yolo_assigner.export.cli"}
    assert wrong_imports("serve", "import yolo_assigner.audit.cli") == {"yolo_assigner.audit.cli"}
    assert short_names(source) == set()
    assert short_names("def f():\n    from serve import client\n    import models\n") == {"serve.client", "models"}

"""What ``make image-check`` can say without an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.container import Image
from deploy.image_build import local_paths, pip_file, pip_settings
from deploy.image_check import contents, sizes

GOOD = {
    "User": "10001:10001",
    "StopSignal": "SIGTERM",
    "Healthcheck": {"Test": ["CMD", "true"]},
    "Labels": {"org.opencontainers.image.licenses": "Apache-2.0"},
}


def bad(files: Path, **config: object) -> set[str]:
    """What is found to be wrong."""
    return {finding.what for finding in contents(Image(files, {**GOOD, **config})) if not finding.good}


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_an_image_as_it_should_be(tmp_path: Path) -> None:
    for name in ("usr/bin/ldd", "usr/bin/ld.so", "usr/bin/cat", "opt/serve/bin/python"):
        touch(tmp_path / name)
    assert bad(tmp_path) == set()


@pytest.mark.parametrize("name", ["gcc", "cc", "x86_64-linux-gnu-gcc-12", "clang-19", "ld", "as", "g++"])
def test_a_compiler_is_found_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "usr/bin" / name)
    assert bad(tmp_path) == {"no compiler"}


def test_what_else_is_wrong_is_found(tmp_path: Path) -> None:
    touch(tmp_path / "opt/serve/lib/python3.11/site-packages/torch/__init__.py")
    assert bad(tmp_path, User="0:0", StopSignal="", Healthcheck=None, Labels={}) == {
        "no torch",
        "user",
        "signal that stops it",
        "health check",
        "licence, by its label",
    }


def test_a_file_of_two_names_is_counted_once(tmp_path: Path) -> None:
    base, image = tmp_path / "base", tmp_path / "image"
    for folder, mebibytes in ((base, 1), (image, 4)):
        folder.mkdir()
        (folder / "data").write_bytes(bytes(mebibytes * 2**20))
        (folder / "again").hardlink_to(folder / "data")
        (folder / "link").symlink_to("data")
    assert [finding.found for finding in sizes(base, image)] == ["3 MiB", "4 MiB"]


def test_the_environment_goes_before_pips_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "index" / "simple"
    for folder in (wheels, index):
        folder.mkdir(parents=True)
    (tmp_path / "pip.conf").write_text("[global]\nfind-links = elsewhere\ntimeout = 7\n", encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file://{index}")
    settings = pip_settings()
    assert settings["find-links"] == str(wheels)
    assert settings["timeout"] == "7"
    # An index's pages refer to files beside it, so the folder above is what a build needs.
    assert {wheels, index.parent} <= set(local_paths(settings))
    assert f"find-links = {wheels}" in pip_file(settings).splitlines()

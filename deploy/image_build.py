"""Builds the container image where neither a daemon nor an image registry is to be had: buildah on a Debian base."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BASE = "localhost/image-check-base"
# Whose python3 is one that the project takes; torch must have a wheel for it.
SUITE = "bookworm"
# What a package manager left and no image has.
LEFT_OVER = ("var/cache/apt", "var/lib/apt/lists", "var/log")
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


class Store:
    """Images and their files, in a folder of their own.

    Args:
        folder: Where everything is kept.
        driver: How buildah keeps layers: ``vfs`` copies them and works anywhere, ``overlay`` is quicker.
    """

    def __init__(self, folder: Path, driver: str) -> None:
        self.folder = folder
        self._words = ("--root", str(folder / "images"), "--runroot", str(folder / "run"), "--storage-driver", driver)

    def buildah(self, *words: str) -> str:
        """Run buildah to its end and return what it said."""
        return run("buildah", *self._words, *words)

    def build(self, words: Sequence[str], context: Path) -> None:
        """Build an image; what its steps say goes to standard error."""
        # Without a daemon and without namespaces: each step runs in a changed root.
        command = (
            "buildah",
            *self._words,
            "build",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            *words,
            str(context),
        )
        subprocess.run(command, stdout=sys.stderr, check=True)  # noqa: S603

    def mount(self, image: str) -> Path:
        """The folder with an image's files."""
        container = self.buildah("from", "--pull-never", image).strip()
        return Path(self.buildah("mount", container).strip())

    def config(self, image: str) -> dict[str, Any]:
        """What an image says of itself, as Docker writes it: ``Env``, ``User``, ``Entrypoint`` and so on."""
        inspected = json.loads(self.buildah("inspect", "--type", "image", image))
        return dict(inspected["Docker"]["config"])


def run(*words: str) -> str:
    """Run a program to its end and return what it wrote to standard output.

    Raises:
        CalledProcessError: It failed.
    """
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603


def make_base(store: Store) -> None:
    """An image of Debian with Python, made from Debian's packages; nothing is done when the store has it."""
    if store.buildah("images", "--quiet", "--filter", f"reference={BASE}").strip():
        return
    files = store.folder / "base"
    packages = "--include=ca-certificates,python3-venv"
    subprocess.run(("debootstrap", "--variant=minbase", packages, SUITE, str(files)), stdout=sys.stderr, check=True)  # noqa: S603, S607
    for name in LEFT_OVER:
        shutil.rmtree(files / name)
        (files / name).mkdir()
    context = store.folder / "context"
    context.mkdir()
    run("tar", "-C", str(files), "-cf", str(context / "base.tar"), ".")
    (context / "Dockerfile").write_text('FROM scratch\nADD base.tar /\nCMD ["python3"]\n', encoding="utf-8")
    store.build(("--tag", BASE), context)
    shutil.rmtree(files)
    shutil.rmtree(context)


def build_image(store: Store, target: str, arguments: Mapping[str, str]) -> str:
    """Build a target of the Dockerfile on that base, with pip set up as it is on this machine.

    Args:
        store: Has the base.
        target: A stage.
        arguments: Of the Dockerfile, besides the base.

    Returns:
        The image's name.
    """
    name = f"localhost/image-check:{target}"
    settings = pip_settings()
    file = store.folder / "pip.conf"
    file.write_text(pip_file(settings), encoding="utf-8")
    mounts = {"/etc/pip.conf": file, **{str(path): path.resolve() for path in local_paths(settings)}}
    words = ["--tag", name, "--target", target, "--file", str(ROOT / "Dockerfile")]
    for key, value in {"BASE_IMAGE": BASE, **arguments}.items():
        words += ["--build-arg", f"{key}={value}"]
    for inside, outside in mounts.items():
        words += ["--volume", f"{outside}:{inside}:ro"]
    store.build(words, ROOT)
    return name


def pip_settings() -> dict[str, str]:
    """How pip is set up on this machine: its files' settings, and the environment's over them."""
    settings: dict[str, str] = {}
    fallback = next((os.environ[name] for name in CERTIFICATES if name in os.environ), None)
    if fallback:
        settings["cert"] = fallback
    lines = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    # The environment's are listed first.
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    return settings


def pip_file(settings: Mapping[str, str]) -> str:
    """The same as a configuration file of pip."""
    # Further lines of a value are indented.
    lines = (f"{name} = {value.strip()}".replace("\n", "\n    ") for name, value in settings.items())
    return "\n".join(["[global]", *lines, ""])


def local_paths(settings: Mapping[str, str]) -> list[Path]:
    """What pip reads on this machine's disk: certificates, constraints, folders of wheels, indexes."""
    found = []
    for word in " ".join(settings.values()).split():
        # An index refers to files that lie beside it.
        path = Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word)
        if path.is_absolute() and path.exists():
            found.append(path)
    return sorted(set(found))

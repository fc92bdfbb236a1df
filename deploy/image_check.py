"""Builds the container image, runs it and says whether it is what it is to be: ``make image-check``.

Needs root and Debian's packages buildah, runc and debootstrap; no daemon, no image registry, no GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.container import Image
from deploy.image_build import BASE, Store, build_image, make_base
from deploy.image_probe import Finding, look_at_behaviour

PROGRAMS = ("buildah", "runc", "debootstrap")
PROGRAM_FOLDERS = ("usr/bin", "usr/local/bin", "usr/local/cuda/bin", "opt/serve/bin")
COMPILER = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|cpp|clang(\+\+)?|tcc|ld|as|nvcc|ptxas)(-[0-9.]+)?")
MIB = 2**20


def main() -> int:
    """Build and check; 0 when everything is as it should be."""
    options = _parser().parse_args()
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid():
        print(f"image-check needs root and {', '.join(PROGRAMS)}; apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    with _folder(options.keep) as folder:
        findings = _check(Store(folder, options.driver), options)
    print(f"| target {options.target} | found | |\n| --- | --- | --- |")
    for what, found, good in findings:
        print(f"| {what} | {found} | {'' if good is None else 'good' if good else 'BAD'} |")
    return 0 if all(finding.good is not False for finding in findings) else 1


def _check(store: Store, options: argparse.Namespace) -> list[Finding]:
    make_base(store)
    arguments = {"NUM_CLASSES": "1", "VERSION": "image-check"}
    if options.target == "gpu":
        # The libraries of the other one are in NVIDIA's own index.
        arguments["TENSORRT"] = "tensorrt-rtx"
    name = build_image(store, options.target, arguments)
    try:
        image = Image(store.mount(name), store.config(name))
        findings = sizes(store.mount(BASE), image.files) + contents(image)
        with tempfile.TemporaryDirectory(dir=store.folder) as scratch:
            return findings + look_at_behaviour(image, Path(scratch), options.starts)
    finally:
        store.buildah("rm", "--all")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.image_check", description=__doc__)
    parser.add_argument("--target", choices=("cpu", "gpu"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--starts", type=int, default=5, metavar="N", help="starts to time (default: %(default)s)")
    parser.add_argument("--driver", default="vfs", help="how buildah keeps layers (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for images, kept; a temporary one by default")
    return parser


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """The folder, which users other than root must be able to enter."""
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="image-check-") as folder:
        yield Path(folder)


def sizes(base: Path, files: Path) -> list[Finding]:
    """How much disk the image and its base take."""
    whole, below = _bytes(files), _bytes(base)
    return [
        Finding("files of the image, over its base", f"{(whole - below) / MIB:.0f} MiB"),
        Finding("files of the image, with its base", f"{whole / MIB:.0f} MiB"),
    ]


def _bytes(folder: Path) -> int:
    """Size of all files, those with several names once."""
    found = {}
    for path in folder.rglob("*"):
        if not path.is_symlink() and path.is_file():
            status = path.stat()
            found[status.st_ino] = status.st_size
    return sum(found.values())


def contents(image: Image) -> list[Finding]:
    """What is in the image, and what must not be."""
    binaries = [path.name for name in PROGRAM_FOLDERS for path in _listed(image, name)]
    compilers = sorted(name for name in binaries if COMPILER.fullmatch(name))
    torches = sorted(str(path.relative_to(image.files)) for path in image.files.glob("**/*-packages/torch"))
    user, group = image.user
    labels = image.config["Labels"]
    signal, checked = image.config.get("StopSignal") or "none", bool(image.config.get("Healthcheck"))
    return [
        Finding("no torch", ", ".join(torches) or "none", not torches),
        Finding("no compiler", ", ".join(compilers) or "none", not compilers),
        Finding("user", f"{user}:{group}", user != 0 and group != 0),
        Finding("signal that stops it", signal, signal == "SIGTERM"),
        Finding("health check", "declared" if checked else "none", checked),
        Finding("licence, by its label", *_label(labels, "org.opencontainers.image.licenses")),
    ]


def _listed(image: Image, name: str) -> list[Path]:
    folder = image.files / name
    return list(folder.iterdir()) if folder.is_dir() else []


def _label(labels: dict[str, str], name: str) -> tuple[str, bool]:
    return labels.get(name, "none"), name in labels


if __name__ == "__main__":
    sys.exit(main())

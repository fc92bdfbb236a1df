"""``python -m benchmarks.gpu.pack``: what a bare GPU machine without a network needs, in the folder ``.gpu``.

These are wheels for its Python, exported models of this code, and an unpacked onnxruntime-gpu if one is given. What is
there already stays, but models of other code. The exit code is 1 where something is missing, or the whole is too large
to be carried.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.environment import PACK, ROOT, code_hash, commit, output
from benchmarks.gpu.exported import prepare

WHEELS = Path(__file__).with_name("wheels.txt")
ORT = "ort.tar.xz"
PLATFORMS = ("manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
MODELS = [f"{how}/{kind}.onnx" for how in ("dense", "sparse") for kind in ("assigner", "loss", "loss_grad")]
CODE, EXPORTS = "code", ("yolo_loss", "export")
MOST_MIB = 64


def main(words: Sequence[str] | None = None) -> int:
    """Make the folder, and say what it lacks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.pack", description=__doc__)
    parser.add_argument("--ort", type=Path, help="tar archive of an unpacked onnxruntime-gpu, small enough to carry")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--out", type=Path, default=PACK)
    parser.add_argument("--check", action="store_true", help="only say what is missing; needs no network")
    options = parser.parse_args(words)
    if not options.check:
        if missing_wheels(options.out):
            download(options.out / "wheels", options.python)
        if models_code(options.out) != code_hash(sources=EXPORTS):
            shutil.rmtree(options.out / "models", ignore_errors=True)
        prepare(options.out / "models")
        (options.out / "models" / CODE).write_text(code_hash(sources=EXPORTS), encoding="ascii")
        if options.ort:
            shutil.copyfile(options.ort, options.out / ORT)
        (options.out / "commit").write_text(f"{commit()}\n", encoding="ascii")
    found = problems(options.out)
    print("\n".join(found) or f"{options.out} is complete, {size_mib(options.out):.0f} MiB")
    return 1 if found else 0


def download(folder: Path, python: str) -> None:
    """Download the wheels of ``wheels.txt`` for Linux on x86-64; what pip says goes to standard error."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    kind = ("--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms)
    words = (sys.executable, "-m", "pip", "download", "-q", *kind, "-d", str(folder), "-r", str(WHEELS))
    subprocess.run(words, check=False)


def missing_wheels(folder: Path) -> list[str]:
    """Lines of ``wheels.txt`` of which the folder has no wheel."""
    wanted = [line.split("==") for line in WHEELS.read_text(encoding="ascii").split()]
    have = {path.name.lower().rsplit("-", 3)[0] for path in (folder / "wheels").glob("*.whl")}
    return [f"{name}=={version}" for name, version in wanted if f"{name.replace('-', '_')}-{version}" not in have]


def problems(folder: Path) -> list[str]:
    """What the folder lacks, and whether it is too large together with the files of the repository."""
    found = [f"no wheel of {line}; run this command with a network" for line in missing_wheels(folder)]
    if len(list(folder.glob("wheels/*.whl"))) + len(found) > len(WHEELS.read_text(encoding="ascii").split()):
        found.append(f"{folder / 'wheels'} has other wheels too, and two versions of one stop pip; delete them")
    found += [f"no model {name}" for name in MODELS if not (folder / "models" / name).exists()]
    if models_code(folder) != code_hash(sources=EXPORTS):
        found.append("the models are of other code; run this command again")
    tracked = sum((ROOT / name).stat().st_size for name in output("git", "-C", str(ROOT), "ls-files").splitlines())
    whole = size_mib(folder) + tracked / 2**20
    if whole > MOST_MIB:
        found.append(f"{whole:.0f} MiB with the repository, and {MOST_MIB} can be carried")
    return found


def models_code(folder: Path) -> str:
    """Hash of the code that made the models, or empty."""
    path = folder / "models" / CODE
    return path.read_text(encoding="ascii") if path.exists() else ""


def size_mib(folder: Path) -> float:
    """MiB of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks.gpu.pack``: what a bare GPU machine without a network needs, in the folder ``.gpu``.

These are wheels for its Python, exported models of this code, and an unpacked onnxruntime-gpu if one is given. Wheels
that are there already stay. The exit code is 1 where something is missing, or the whole is too large to be carried.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import PRESET
from benchmarks.gpu.contenders import KIND_OF_TASK
from benchmarks.gpu.results import PACK, ROOT, code_hash, commit, output

WHEELS = Path(__file__).with_name("wheels.txt")
PLATFORMS = ("manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
MODELS = [f"{how}/{kind}.onnx" for how in ("dense", "sparse") for kind in KIND_OF_TASK.values()]
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
        if wheels_of(options.out) != wanted_wheels():
            download(options.out / "wheels", options.python)
        export(models_of(options.out))
        if options.ort:
            shutil.copyfile(options.ort, options.out / "ort.tar.xz")
        (options.out / "commit").write_text(f"{commit()}\n", encoding="ascii")
    found = problems(options.out)
    print("\n".join(found) or f"{options.out} is complete, {size_mib(options.out):.0f} MiB")
    return 1 if found else 0


def models_of(folder: Path = PACK) -> Path:
    """Where a pack has the models of the present code."""
    return folder / "models" / code_hash(sources=("yolo_loss", "export"))


def download(folder: Path, python: str) -> None:
    """Download the wheels of ``wheels.txt`` for Linux on x86-64; what pip says goes to standard error."""
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    kind = ("--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms)
    words = (sys.executable, "-m", "pip", "download", "-q", *kind, "-d", str(folder), "-r", str(WHEELS))
    subprocess.run(words, check=False)


def export(folder: Path) -> None:
    """Export the models; those of other code are deleted."""
    from tests.exports import exported

    shutil.rmtree(folder.parent, ignore_errors=True)
    for name in map(Path, MODELS):
        made = exported(name.stem, name.parent.name, num_classes=80, preset=PRESET)
        shutil.copytree(made, folder / name.parent, dirs_exist_ok=True)


def wanted_wheels() -> set[str]:
    """Beginnings of the wheels' names."""
    return {line.replace("-", "_").replace("==", "-") for line in WHEELS.read_text(encoding="ascii").split()}


def wheels_of(folder: Path) -> set[str]:
    """Beginnings of the names of the wheels that are there."""
    return {path.name.lower().rsplit("-", 3)[0] for path in folder.glob("wheels/*.whl")}


def problems(folder: Path) -> list[str]:
    """What the folder lacks, and whether it is too large together with the files of the repository."""
    wanted, have = wanted_wheels(), wheels_of(folder)
    found = [f"no wheel {name}; run this command with a network" for name in sorted(wanted - have)]
    found += [f"a wheel {name}, and two versions of one stop pip; delete it" for name in sorted(have - wanted)]
    models = [models_of(folder) / name for name in MODELS]
    found += [f"no {path} of this code; run this command" for path in models if not path.exists()]
    tracked = sum((ROOT / name).stat().st_size for name in output("git", "-C", str(ROOT), "ls-files").splitlines())
    whole = size_mib(folder) + tracked / 2**20
    if whole > MOST_MIB:
        found.append(f"{whole:.0f} MiB with the repository, and {MOST_MIB} can be carried")
    return found


def size_mib(folder: Path) -> float:
    """MiB of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


if __name__ == "__main__":
    sys.exit(main())

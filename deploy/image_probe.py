"""Runs the service of an image and looks at how it behaves."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from deploy.container import Container, Image
from deploy.image_service import READY_SECONDS, Service
from examples.dataset import Sample, load_sample
from yolo_loss import DetectionLoss

ENGINES = "/artifacts/engines"
TOLERANCE = 1e-5
BUILD_SECONDS = 600


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        what: What was looked at.
        found: What it is.
        good: Whether that is as it should be; None for a number that has no bound.
    """

    what: str
    found: str
    good: bool | None = None


def look_at_behaviour(image: Image, folder: Path, starts: int) -> list[Finding]:
    """Start the service often, use it and stop it.

    Args:
        image: What to run.
        folder: Empty.
        starts: How often to start it with its files in memory; once before it is started without.
    """
    sample = load_sample()
    engines = folder / "engines"
    engines.mkdir()
    os.chown(engines, *image.user)
    volumes = {}
    findings = []
    if (image.files / ENGINES.lstrip("/")).is_dir():
        volumes[ENGINES] = engines
        findings.append(_build_engines(image, folder / "builder", volumes))
    findings += [_exit(image, folder / "unready", ("health",), 1), _exit(image, folder / "keyless", ("serve",), 2)]
    _forget(image.files)
    times = []
    for number in range(starts + 1):
        with Service(image, folder / f"start-{number}", volumes) as service:
            loss = service.ask(sample)
            times.append((service.ready_seconds, time.perf_counter() - service.started))
    with Service(image, folder / "inspected", volumes) as service:
        if volumes:
            findings.append(_without_gpu(service.container))
        shown = service.answers(service.metrics_port, "/metrics")
        findings.append(Finding("metrics on a port of their own", "answered" if shown else "none", shown))
        findings += [_compare(loss, sample), *_look_inside(service.container, image), *_stop(service, sample, loss)]
    return findings + _report_times(times)


def _exit(image: Image, folder: Path, words: Sequence[str], expected: int) -> Finding:
    """Of a command that cannot succeed: there is no service to be healthy, and there are no keys to serve with."""
    container = Container(image, folder, words)
    code = container.wait(READY_SECONDS)
    text = container.log.read_text().strip()
    return Finding(f"{' '.join(words)}, alone and without keys", f"exit code {code} {text}".strip(), code == expected)


def _build_engines(image: Image, folder: Path, volumes: Mapping[str, Path]) -> Finding:
    """Without any network."""
    started = time.perf_counter()
    container = Container(image, folder, ("build-engines",), volumes=volumes)
    code = container.wait(BUILD_SECONDS)
    seconds = time.perf_counter() - started
    if code:
        return Finding("build-engines, without a network", f"exit code {code}: {container.log.read_text()}", False)
    made = sorted(path.name for path in volumes[ENGINES].glob("*.engine"))
    return Finding("build-engines, without a network", f"{', '.join(made)} in {seconds:.1f} s", bool(made))


def _without_gpu(container: Container) -> Finding:
    """The volume of engines is there, but nothing that they could run on."""
    said = [line for line in container.log.read_text().splitlines() if line.startswith("no engine is built")]
    return Finding("start with a volume for engines and no GPU", " ".join(said), len(said) == 1)


def _forget(files: Path) -> None:
    """Have the kernel drop the files from memory, so that the next start reads them from the disk."""
    os.sync()
    for path in files.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _compare(loss: float, sample: Sample) -> Finding:
    batch = {name: torch.from_numpy(values) for name, values in sample.batch.items()}
    feats = [torch.from_numpy(feat) for feat in sample.feats]
    expected = float(DetectionLoss(1).evaluate(feats, batch).loss)
    difference = abs(loss - expected) / expected
    text = f"{loss:.5f}, torch {expected:.5f}, relative difference {difference:.1e}"
    return Finding("loss of the sample", text, difference <= TOLERANCE)


def _look_inside(container: Container, image: Image) -> list[Finding]:
    """What a program in the running container can do and sees."""
    python = image.config["Entrypoint"][0]
    health = image.config["Healthcheck"]["Test"][1:]
    user = container.inside(python, "-c", "import os; print(os.getuid())").stdout.strip()
    write = container.inside(python, "-c", "open('/artifacts/written', 'w')")
    temporary = container.inside(python, "-c", "open('/tmp/written', 'w')")
    first = container.inside(python, "-c", "print(open('/proc/1/cmdline').read().replace(chr(0), ' '))").stdout.strip()
    imported = container.inside(python, "-c", "import torch").stderr.strip().rpartition("\n")[2]
    healthy = container.inside(*health).returncode
    return [
        Finding("user of a process in it", user, user not in ("", "0")),
        Finding("writing outside /tmp", write.stderr.strip().rpartition("\n")[2], "Read-only" in write.stderr),
        Finding("writing in /tmp", f"exit code {temporary.returncode}", temporary.returncode == 0),
        Finding("first process", first, first.endswith("-m yolo_assigner serve")),
        Finding("import torch", imported, "No module named 'torch'" in imported),
        Finding("health check of the service", f"exit code {healthy}", healthy == 0),
    ]


def _stop(service: Service, sample: Sample, loss: float) -> list[Finding]:
    drained = service.drain(sample)
    same = drained.loss is not None and abs(drained.loss - loss) <= TOLERANCE * loss
    return [
        Finding("request under way at SIGTERM", f"{drained.status}, loss {drained.loss}", same),
        Finding("exit code after SIGTERM", str(drained.exit_code), drained.exit_code == 0),
    ]


def _report_times(times: list[tuple[float, float]]) -> list[Finding]:
    (ready, answered), *warm = times
    findings = [Finding("start to ready, to first answer: files not in memory", f"{ready:.2f} s, {answered:.2f} s")]
    if warm:
        both = " s, ".join(f"{statistics.median(each):.2f}" for each in zip(*warm, strict=True))
        findings.append(Finding(f"the same, files in memory: median of {len(warm)}", f"{both} s"))
    return findings

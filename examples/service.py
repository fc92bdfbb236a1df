"""The exported models of the sample, and the service that answers with them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from yolo_assigner.export.contract import ContractError, find_contracts
from yolo_loss import __version__

READY_TRIES = 120


def export_once(
    folder: Path, num_classes: int, models: Sequence[str] = ("assigner", "loss"), options: Sequence[str] = ()
) -> None:
    """Export models, unless the folder has them from this release.

    Args:
        folder: Where to.
        num_classes: C.
        models: Their kinds, under which they are also served.
        options: Further words for ``yolo-assigner export onnx``, always the same for a folder.

    Raises:
        CalledProcessError: The export failed; its reason is on standard error.
    """
    missing = [model for model in models if not _up_to_date(folder, num_classes, model)]
    if not missing:
        print(f"{folder} is up to date")
    for model in missing:
        words = ("onnx", "--model", model, "--num-classes", str(num_classes), "--out", str(folder))
        subprocess.run([sys.executable, "-m", "yolo_assigner", "export", *words, *options], check=True)


def _up_to_date(folder: Path, num_classes: int, model: str) -> bool:
    try:
        contracts = [contract for _, contract in find_contracts(folder)]
    except ContractError:
        return False
    return any(
        contract.name == model
        and contract.versions["yolo-assigner"] == __version__
        and contract.hyperparameters["num_classes"] == num_classes
        for contract in contracts
    )


@contextmanager
def running_service(artifacts: Path, *options: str) -> Iterator[str]:
    """Start ``yolo-assigner serve`` on a free port, wait until it is ready, and stop it in the end.

    Args:
        artifacts: Folder with the exported models.
        options: Further words for ``yolo-assigner serve``.

    Yields:
        Its URL.

    Raises:
        RuntimeError: It did not start; its reason is on standard error.
    """
    words = ("-m", "yolo_assigner", "serve", "--artifacts", str(artifacts), "--port", "0", "--log-level", "warning")
    with subprocess.Popen([sys.executable, *words, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            first_line = process.stdout.readline() if process.stdout else ""
            url = first_line.rpartition(" ")[2].strip()
            if not url.startswith("http://"):
                raise RuntimeError(f"the service did not start; it said {first_line!r}")
            _wait_until_ready(url, process)
            yield url
        finally:
            process.terminate()


def _wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(READY_TRIES):
        try:
            with urlopen(f"{url}/v2/health/ready", timeout=5):  # noqa: S310  (loopback, made above)
                return
        except URLError:
            if process.poll() is not None:
                break
            time.sleep(0.25)
    raise RuntimeError(f"{url} did not become ready")

"""One model in one runtime, in processes of its own: what ends one is noted, and the next goes on behind it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

# For all batches of one model.
SECONDS = 300


def run_batches(
    command: Sequence[str], folder: Path, model: Path, batches: Sequence[Path], out: Path
) -> dict[str, str | None]:
    """Run a model on batches.

    Args:
        command: Runs a model; ``model``, ``out`` and the batches are added.
        folder: To run it in.
        model: The ONNX file.
        batches: Files of inputs.
        out: Where the outputs go.

    Returns:
        Why each batch has no outputs, by its file's name; None where it has.
    """
    out.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str | None] = {}
    left = list(batches)
    while left:
        begun, errors, end = _run_once([*command, str(model), str(out), *map(str, left)], folder)
        if begun == 0:
            return {**reasons, **dict.fromkeys((batch.name for batch in left), f"did not load: {end}")}
        reasons |= {batch.name: errors.get(batch.name) for batch in left[:begun]}
        if end is not None:
            reasons[left[begun - 1].name] = end
        left = left[begun:]
    return reasons


def _run_once(words: list[str], folder: Path) -> tuple[int, dict[str, str], str | None]:
    """How many batches were begun, errors by batch, and why the process ended before its time."""
    end: str | None = None
    try:
        done = subprocess.run(words, check=False, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        stdout, stderr, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        stdout, stderr, code = (error.stdout or b"").decode(), "", 0
        end = f"took more than {SECONDS} s"
    lines = [json.loads(line) for line in stdout.splitlines() if line.startswith('{"batch"')]
    errors = {line["batch"]: f"raised: {_reason(line['error'])}" for line in lines if "error" in line}
    if code < 0:
        end = f"crashed with {signal.Signals(-code).name}"
    elif code > 0:
        end = _reason(stderr) or f"exit code {code}"
    return len(lines) - len(errors), errors, end


def _reason(text: str) -> str:
    """The last two lines that say something, in one."""
    return " ".join([line.strip() for line in text.splitlines() if line.strip()][-2:])

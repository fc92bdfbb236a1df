"""The training loops, short enough for a test; those of other packages where these are installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.dataset import load_labels
from examples.trees import Trees, collate

ROOT = Path(__file__).parents[2]


def test_the_dataset_gives_the_annotated_trees() -> None:
    dataset = Trees(64)
    images, batch = collate([dataset[0], dataset[1]])
    assert images.shape == (2, 3, 64, 64)
    for key, column in load_labels().items():
        torch.testing.assert_close(batch[key], torch.from_numpy(column), rtol=0, atol=1e-6)
    _, swapped = collate([dataset[1], dataset[0]])
    assert torch.bincount(swapped["batch_idx"]).tolist() == [61, 37]


@pytest.mark.parametrize("name", ["plain", "lightning", "accelerate"])
def test_the_loss_falls(name: str, tmp_path: Path) -> None:
    if name != "plain" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; pip install {name}")
    # A process of its own, because importing these packages changes loggers and warns.
    words = ("-c", f"from examples.train_{name} import main; main(['--epochs', '12'])")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(number) for number in re.findall(r"epoch \d+: loss ([\d.]+)", done.stdout)]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]

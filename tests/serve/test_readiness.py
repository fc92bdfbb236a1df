"""The server is ready once every model is ready or failed, and not a moment before."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import ROOT, Live, assigner_inputs, binary_rows, copy_as, stop
from tests.serve.test_app import SumRunner
from tests.serve.toy_contract import CONTRACT
from yolo_assigner.export.contract import file_hash
from yolo_assigner.serve.errors import NotReadyError
from yolo_assigner.serve.inference.loading import LoadedModels
from yolo_assigner.serve.inference.local import LocalService
from yolo_assigner.serve.inference.model import Model

PATIENCE = 60.0


class DamagedRunner(SumRunner):
    """Fails once it may load."""

    def load(self) -> None:
        """Wait until the test allows loading, then fail."""
        super().load()
        raise ValueError("no graph")


@pytest.mark.parametrize("failing", [set(), {"a"}, {"b"}, {"c"}, {"a", "b"}, {"b", "c"}])
def test_every_model_is_waited_for(failing: set[str]) -> None:
    async def scenario() -> None:
        runners = {name: DamagedRunner() if name in failing else SumRunner() for name in "abc"}
        models = [Model(dataclasses.replace(CONTRACT, name=name), runner) for name, runner in runners.items()]
        service = LocalService(LoadedModels(models))
        loading = asyncio.create_task(service.load())
        try:
            for name, runner in runners.items():
                with pytest.raises(NotReadyError):
                    service.check_ready()
                runner.may_load.set()
                while not (service.registry.models[name].ready or name in service.registry.failures):
                    await asyncio.sleep(0.001)
            await loading
            service.check_ready()
            assert service.registry.failures.keys() == failing
        finally:
            service.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


@contextmanager
def starting(*words: str | Path) -> Iterator[Live]:
    """A server that has begun to listen and loads its models."""
    command = [sys.executable, "-m", "yolo_assigner", "serve", "--port", "0", "--threads", "1", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    host, port = process.stdout.readline().removeprefix("serving on http://").strip().rsplit(":", 1)
    live = Live(host, int(port), process)
    try:
        yield live
        assert stop(live) == 0
    finally:
        process.kill()
        process.wait()


NAMES = ("first", "second", "third")


def damage(folder: Path, name: str) -> None:
    """Make a model that only its runtime finds damaged."""
    (folder / f"{name}.onnx").write_bytes(b"\xff" * 100)
    path = folder / f"{name}.json"
    contract: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(contract | {"sha256": file_hash(folder / f"{name}.onnx")}))


@pytest.mark.parametrize("damaged", [NAMES[0], NAMES[-1]])
@pytest.mark.parametrize("engines", ["--engine-process", "--no-engine-process"])
def test_a_server_that_says_that_it_is_ready_stays_so(
    assigner_dir: Path, tmp_path: Path, engines: str, damaged: str
) -> None:
    """A healthy model beside one that fails before it, and one that fails after it."""
    copy_as(assigner_dir, tmp_path, *NAMES)
    damage(tmp_path, damaged)
    rows, blob = binary_rows(assigner_inputs())
    with starting("--artifacts", tmp_path, engines) as live:
        deadline = time.monotonic() + PATIENCE
        refused = 0
        while live.send("GET", "/v2/health/ready").status != 200:
            assert time.monotonic() < deadline
            refused += 1
            time.sleep(0.005)  # leaves the core to the server
        assert refused > 0
        states = {name: live.send("GET", f"/v2/models/{name}/ready") for name in NAMES}
        assert {name: reply.status for name, reply in states.items()} == {
            name: 503 if name == damaged else 200 for name in states
        }
        assert f"model '{damaged}' cannot be loaded" in states[damaged].error
        assert live.infer("second", {"inputs": rows}, blob).status == 200
        assert all(live.send("GET", "/v2/health/ready").status == 200 for _ in range(100))

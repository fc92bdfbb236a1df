"""The service on a real Ray of this machine: one cluster for all, which takes half a minute."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.common.client import infer_head
from tests.docs.markdown import DOCS, blocks
from tests.processes import marked, nothing_left
from tests.serve.cluster.running import REPLICA, Cluster, cluster
from tests.serve.conftest import ROOT, assigner_inputs, binary_rows
from tests.serve.hostile.wire import Reply, Wire
from tests.served import serving, wait_until_ready
from yolo_assigner.serve.client import AssignerClient, ServerError
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.response import dump_json

pytest.importorskip("ray.serve", reason="needs yolo-assigner[ray]: make test-ray")

OUTPUTS = ("target_labels", "target_bboxes", "target_scores", "fg_mask", "target_gt_idx", "target_weights")
WORDS = ("--threads", "1", "--engine", "onnxruntime", "--device", "cpu")
LIMIT = 2**22
KEY = "a-key-of-some-length"
(PAGE,) = (page for page in DOCS if page.name == "ray.md")
ENDED_SECONDS = 20.0


def commands_of_the_page(artifacts: Path, folder: Path, port: int) -> str:
    """What starts a cluster, as the page has it, but for paths, ports and the GPU."""
    (folder / "keys.txt").write_text(f"{KEY}\n")
    control, dashboard = 6400 + os.getpid() % 1000, 9200 + os.getpid() % 700  # below the ports of Ray's workers
    changes = {
        "/run/secrets/yolo-assigner/api-keys.txt": str(folder / "keys.txt"),
        "artifacts: /artifacts": f"artifacts: {artifacts}",
        "ray_gpus: 1": "ray_gpus: 0",
        "port: 8000": f"port: {port}",
        "ray start --head": f"ray start --head --num-cpus 2 --port {control} --dashboard-port {dashboard}",
        "serve deploy deploy/ray-serve.yaml": f"serve deploy -a http://127.0.0.1:{dashboard} {folder}/serve.yaml",
    }
    (shown,) = (block.code for block in blocks(PAGE) if "serve deploy" in block.code)
    config = (ROOT / "deploy/ray-serve.yaml").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in shown + config
        shown, config = shown.replace(old, new), config.replace(old, new)
    (folder / "serve.yaml").write_text(config)
    return shown


def test_the_commands_for_a_cluster(assigner_dir: Path, tmp_path: Path) -> None:
    """Its processes are killed, since ``ray stop`` would end the clusters of others, too."""
    port = 8000 + os.getpid() % 1000
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    home = {"HOME": str(tmp_path), "PATH": programs, "PYTHONPATH": str(ROOT)}  # Ray keeps its token there
    script = f"{commands_of_the_page(assigner_dir, tmp_path, port)}\nsleep 600"
    with nothing_left() as mark:
        process = subprocess.Popen(["bash", "-ec", script], env=os.environ | home, text=True)
        try:
            wait_until_ready(port, process)
            with AssignerClient(f"127.0.0.1:{port}", key=KEY) as client:
                assert client.infer("assigner", assigner_inputs(), OUTPUTS).keys() == set(OUTPUTS)
            with AssignerClient(f"127.0.0.1:{port}") as client, pytest.raises(ServerError, match="key"):
                client.infer("assigner", assigner_inputs(), OUTPUTS)
        finally:
            for pid in marked(mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def running(assigner_dir: Path) -> Iterator[Cluster]:
    """A cluster of one replica; it ends when the requests under way are answered, and nothing is left."""
    limits = ("--max-request-bytes", str(LIMIT), "--max-requests", "2", "--ray-cpus", "0.5")
    with cluster(assigner_dir, *WORDS, *limits) as made:
        yield made
        with Wire(made.port) as wire:
            rest = begun(wire)
            made.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)  # until it has begun to stop
            wire.write((rest,))
            assert wire.reply().status == 200
        assert made.process.wait(timeout=60) == 0


def replica_of(running: Cluster) -> int:
    """Process id of the only replica, once there is one."""
    until = time.monotonic() + ENDED_SECONDS
    while not (found := running.processes(REPLICA)) and time.monotonic() < until:
        time.sleep(0.1)
    (pid,) = found
    return pid


def ask(port: int, arrays: dict[str, Array]) -> dict[str, Array]:
    """All outputs of the assigner."""
    with AssignerClient(f"localhost:{port}") as client:
        return client.infer("assigner", arrays, OUTPUTS)


def body_of(arrays: dict[str, Array]) -> tuple[str, bytes]:
    """Headers and body of an infer request."""
    rows, blob = binary_rows(arrays)
    text = dump_json({"inputs": rows})
    return f"inference-header-content-length: {len(text)}\r\n", text + blob


def begun(wire: Wire) -> bytes:
    """Send the first half of a request, and return the second."""
    more, body = body_of(assigner_inputs())
    middle = len(body) // 2
    wire.write((infer_head("assigner", len(body), more), body[:middle]))
    return body[middle:]


def refused(reply: Reply, status: int) -> str:
    """The text of a refusal in the service's form."""
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert reply.body.startswith(b'{"error":"')
    return reply.body.decode()


def test_ray_takes_the_config_file() -> None:
    from ray.serve.schema import ServeDeploySchema

    from yolo_assigner.serve.cluster import application

    config = yaml.safe_load((ROOT / "deploy/ray-serve.yaml").read_text(encoding="utf-8"))
    (more,) = (yaml.safe_load(block.code) for block in blocks(PAGE) if block.language == "yaml")
    config["applications"][0] |= more
    (given,) = ServeDeploySchema.model_validate(config).applications
    assert given.import_path == f"{application.__name__}:{application.build.__name__}"
    assert application.build(given.args) is not None
    assert [deployment.name for deployment in given.deployments] == [application.NAME]


def test_the_page_says_how_long_rays_autoscaler_waits() -> None:
    from ray.serve.config import AutoscalingConfig

    usual = AutoscalingConfig()
    assert (usual.upscale_delay_s, usual.downscale_delay_s) == (30, 600)
    assert "waits for 30 s before it adds a replica, and for 10 minutes" in PAGE.read_text(encoding="utf-8")


def test_answers_are_those_of_one_server_to_the_bit(running: Cluster, assigner_dir: Path) -> None:
    arrays = assigner_inputs(images=3, side=320, seed=5)
    with serving(assigner_dir, *WORDS) as alone:
        expected = ask(alone.port, arrays)
    for name, array in ask(running.port, arrays).items():
        np.testing.assert_array_equal(array, expected[name])


def test_refusals_have_the_services_form(running: Cluster) -> None:
    with Wire(running.port) as wire:
        wire.write((infer_head("nothing", 2), b"{}"))
        assert "nothing" in refused(wire.reply(), 404)  # by the replica
        wire.write((infer_head("assigner", LIMIT + 1),))
        assert f"the limit is {LIMIT}" in refused(wire.reply(), 413)  # by the guard, from the head
    with Wire(running.port) as wire:
        wire.write((b"POST /v2/repository/models/assigner/load HTTP/1.1\r\nhost: localhost\r\n\r\n",))
        assert "ray_revision" in refused(wire.reply(), 501)


def test_overload_is_refused_and_what_is_under_way_is_answered(running: Cluster) -> None:
    with Wire(running.port) as first, Wire(running.port) as second, Wire(running.port) as third:
        rests = [(wire, begun(wire)) for wire in (first, second)]
        time.sleep(0.2)  # until both are under way
        third.write((infer_head("assigner", 2), b"{}"))
        full = third.reply()
        assert "2 requests are under way" in refused(full, 503)
        assert full.headers["retry-after"] == "1"
        for wire, rest in rests:
            wire.write((rest,))
            assert wire.reply().status == 200


def test_a_replica_that_is_killed_is_answered_for_and_replaced(running: Cluster) -> None:
    killed = replica_of(running)
    with Wire(running.port) as wire:
        begun(wire)
        time.sleep(0.3)  # until the replica waits for the rest
        os.kill(killed, signal.SIGKILL)
        assert "send the request again" in refused(wire.reply(), 502)
    arrays = assigner_inputs()
    assert ask(running.port, arrays).keys() == set(OUTPUTS)  # it waits for the next replica
    assert replica_of(running) != killed

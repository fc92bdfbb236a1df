"""The service on a Ray cluster of this machine: replicas killed, replaced and added under load, large bodies, overload.

``python -m benchmarks.ray_cluster``, in the environment of ``make test-ray``. Two replicas behind Ray's proxy, or with
``--ingress haproxy`` behind HAProxy; clients in processes of their own. Every answer is compared to the bit with that
of a server without Ray. Exit code 1: a request was lost or answered wrongly, or something was left running. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.report import RESULTS, machine, table, versions, write_json
from benchmarks.common.timing import clock
from benchmarks.load.cases import ARTIFACTS, MIDDLE, NUM_CLASSES, ODD, SMALL, TINY, Case, Size, inputs_of
from examples.service import export_once
from tests.processes import marked, nothing_left
from tests.serve.cluster.running import REPLICA, free_port
from tests.served import serving
from yolo_assigner.serve.client import AssignerClient, RetryPolicy, ServerError
from yolo_assigner.serve.wire.dtypes import Array

LOAD = [Case(model, size, "binary") for model in ("assigner", "loss") for size in (TINY, SMALL, ODD, MIDDLE)]
BODIES = {"16 MB": Size(3, 30, 640, 640), "77 MB": Size(16, 30, 640, 640)}
OUTPUTS = {
    "assigner": ("target_labels", "target_bboxes", "target_scores", "fg_mask", "target_gt_idx", "target_weights"),
    "loss": ("loss", "loss_items", "image_sums", "fg_mask", "target_labels", "target_weights"),
}
REPLICAS = 2
OVERLOADED = 4  # requests that the proxy admits while it is overloaded
OURS = f"{OVERLOADED} requests are under way"  # as the service refuses what is too much
BUSY = 503
MOST_SHOWN = 20
RETRIES, ONCE = RetryPolicy(tries=100), RetryPolicy(tries=1)  # the first until its deadline, two minutes
TURNS = 5  # of each large body
SPAWN = multiprocessing.get_context("spawn")  # a forked process would inherit Ray's threads
BACK_SECONDS = 120.0  # that a killed replica may take to be replaced, and the cluster to end
# Of Ray's autoscaler, which otherwise waits for 30 s before it adds a replica, and for 10 minutes before it ends one.
SCALING = {"upscale_delay_s": 2.0, "downscale_delay_s": 5.0, "metrics_interval_s": 1.0, "look_back_period_s": 2.0}
HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"


class Asked(NamedTuple):
    """A request with the right answer."""

    model: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]


class Tally(NamedTuple):
    """What clients saw.

    Attributes:
        answers: Number of right answers.
        failed: Texts of those that failed or were wrong.
        refused: Number of refusals by status.
    """

    answers: int
    failed: list[str]
    refused: dict[int, int]


class Deployed(NamedTuple):
    """A running cluster.

    Attributes:
        url: Address of its proxy.
        mark: Marks its processes.
        update: Deploys the application again, with another revision.
    """

    url: str
    mark: str
    update: Callable[[str], None]

    def replicas(self) -> set[int]:
        """Process ids of the replicas."""
        return set(marked(self.mark, REPLICA))

    def ready(self) -> int:
        """Number of the replicas that get requests."""
        from ray import serve

        from yolo_assigner.serve.cluster.application import NAME

        return int(serve.status().applications[NAME].deployments[NAME].replica_states.get("RUNNING", 0))


class Run(NamedTuple):
    """What a part of the benchmark needs.

    Attributes:
        artifacts: Folder of the models.
        asked: Small requests.
        connections: Number of clients.
        rounds: Number of replicas to kill, and of updates.
    """

    artifacts: Path
    asked: list[Asked]
    connections: int
    rounds: int


def main() -> int:
    """Run the parts, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_cluster", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="replicas to kill, and half as many updates")
    parser.add_argument("--connections", type=int, default=6)
    parser.add_argument("--ingress", choices=("proxy", "haproxy"), default="proxy")
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="models of 80 classes; exported if missing")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/ray_INGRESS.json")
    options = parser.parse_args()
    os.environ[HA_PROXY] = str(int(options.ingress == "haproxy"))  # Ray reads it once
    export_once(options.artifacts, NUM_CLASSES, ("assigner", "loss"))
    asked = answered(options.artifacts, [(case.model, inputs_of(case, seed)) for seed, case in enumerate(LOAD)])
    run = Run(options.artifacts.resolve(), asked, options.connections, options.rounds)
    out = options.out or RESULTS / f"ray_{options.ingress}.json"
    parts: dict[str, dict[str, Any]] = {}
    for name in options.parts:
        with nothing_left():
            parts[name] = PARTS[name](run)
        about = {"machine": {**machine(), **versions(("ray",))}, "ingress": options.ingress}
        write_json(out, {**about, **earlier(out), **short(parts)})
    failed = [text for part in parts.values() for text in part["failed"]]
    rows = [(name, part["what"], part["answers"], len(part["failed"])) for name, part in parts.items()]
    print("\n" + table(("part", "what", "right answers", "failed"), rows))
    for text in failed[:MOST_SHOWN]:
        print(text)
    return 1 if failed else 0


def earlier(out: Path) -> dict[str, Any]:
    """Parts of an earlier run, which stay in the file until they run again."""
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    return {name: part for name, part in known.items() if name in PARTS}


def short(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Parts with the number of failures and some of them."""
    return {
        name: {**part, "failed": len(part["failed"]), "examples": part["failed"][:MOST_SHOWN]}
        for name, part in parts.items()
    }


def answered(artifacts: Path, requests: Sequence[tuple[str, dict[str, Array]]]) -> list[Asked]:
    """Requests with the answers of a server without Ray, whose models have as many threads as a replica's."""
    with (
        serving(artifacts, "--threads", "1") as alone,
        AssignerClient(f"localhost:{alone.port}", timeout=300) as client,
    ):
        return [Asked(model, inputs, client.infer(model, inputs, OUTPUTS[model])) for model, inputs in requests]


@contextmanager
def deployed(artifacts: Path, scaling: Mapping[str, float] | None = None, **settings: Any) -> Iterator[Deployed]:
    """Run the application in a Ray cluster of this process, and check that nothing is left of it.

    Args:
        artifacts: Folder of the models.
        scaling: Of Ray's autoscaler, in place of its defaults.
        settings: Further settings of the service.

    Raises:
        RuntimeError: A process is still running some time after the end.
    """
    import ray
    from ray import serve

    from yolo_assigner.serve.cluster.application import NAME, bind, deployment_options
    from yolo_assigner.serve.cluster.command import cluster_variables, http_options
    from yolo_assigner.serve.cluster.options import replica_settings

    arguments = {"artifacts": str(artifacts), "port": free_port(), "ray_replicas": REPLICAS, **settings}
    used = replica_settings(arguments)
    options = deployment_options(used)
    if scaling:
        options["autoscaling_config"] |= scaling

    def update(revision: str) -> None:
        serve.run(bind({**arguments, "ray_revision": revision}, options), name=NAME, route_prefix="/")

    with nothing_left(BACK_SECONDS) as mark:
        environment = dict(os.environ)
        os.environ |= cluster_variables(used, arguments)
        try:
            ray.init(address="local", num_cpus=2 * REPLICAS, include_dashboard=False, log_to_driver=False)
            os.environ.clear()  # the clients are no part of the cluster
            os.environ.update(environment)
            serve.start(proxy_location="HeadOnly", http_options=http_options(used))
            update("")
            yield Deployed(f"127.0.0.1:{used.port}", mark, update)
        finally:
            serve.shutdown()
            ray.shutdown()


def bodies(run: Run) -> dict[str, Any]:
    """Send large bodies to the cluster and to a server without it, in turn."""
    cases = {name: Case("loss", size, "binary") for name, size in BODIES.items()}
    asked = dict(zip(cases, answered(run.artifacts, [("loss", inputs_of(c, 1)) for c in cases.values()]), strict=True))
    failed: list[str] = []
    figures: dict[str, Any] = {}
    with (
        deployed(run.artifacts) as cluster,
        serving(run.artifacts, "--threads", "1") as alone,
        AssignerClient(cluster.url, timeout=300) as through,
        AssignerClient(f"localhost:{alone.port}", timeout=300) as direct,
    ):
        for name, one in asked.items():
            seconds = {"cluster": [0.0], "alone": [0.0]}
            for client, kind in ((through, "cluster"), (direct, "alone")) * TURNS:
                seconds[kind].append(clock(lambda client=client, one=one: failed.extend(fault(client, one))))  # type: ignore[misc]
            figures[name] = {
                "bytes": sum(array.nbytes for array in one.inputs.values()),
                **{f"{kind}_ms": 1000 * float(np.median(values[2:])) for kind, values in seconds.items()},
            }
    what = ", ".join(f"{name} in {f['cluster_ms']:.0f} ms, alone {f['alone_ms']:.0f}" for name, f in figures.items())
    return {"what": what, "answers": 2 * TURNS * len(asked) - len(failed), "failed": failed, "bodies": figures}


def kills(run: Run) -> dict[str, Any]:
    """Kill replicas under load; clients send again what was not answered."""
    with deployed(run.artifacts) as cluster, load(cluster.url, run, retries=True) as tallies:
        for _ in range(run.rounds):
            time.sleep(1.0)
            os.kill(random.choice(sorted(cluster.replicas())), signal.SIGKILL)  # noqa: S311
            _wait_until(lambda: len(cluster.replicas()) == REPLICAS, "a killed replica is not replaced")
    return _part(f"{run.rounds} replicas killed", tallies, refusals_allowed=False)


def updates(run: Run) -> dict[str, Any]:
    """Replace all replicas under load; clients never send again."""
    failed = []
    with deployed(run.artifacts) as cluster, load(cluster.url, run, retries=False) as tallies:
        for number in range(1, run.rounds // 2 + 1):
            old = cluster.replicas()
            cluster.update(str(number))
            _wait_until(lambda old=old: not old & cluster.replicas(), "an old replica is left")  # type: ignore[misc]
            failed += [] if len(cluster.replicas()) >= REPLICAS else ["too few replicas after an update"]
    part = _part(f"{run.rounds // 2} rolling updates", tallies, refusals_allowed=False)
    return {**part, "failed": part["failed"] + failed}


def scaled(run: Run) -> dict[str, Any]:
    """Let load bring a second replica, which ends when one client is left; clients never send again."""
    with deployed(run.artifacts, SCALING, ray_replicas=1, ray_max_replicas=REPLICAS) as cluster:
        with load(cluster.url, run, retries=False) as busy:
            came = _wait_until(lambda: cluster.ready() == REPLICAS, "no replica is added")
            time.sleep(5.0)
        with load(cluster.url, run._replace(connections=1), retries=False) as calm:
            went = _wait_until(lambda: len(cluster.replicas()) == 1, "no replica is ended")
            time.sleep(1.0)
    what = f"{run.connections} clients: 2 replicas after {came:.0f} s; 1 client: 1 replica after {went:.0f} s"
    part = _part(what, [*busy, *calm], refusals_allowed=False)
    return {**part, "autoscaler": SCALING, "seconds_until_two": came, "seconds_until_one": went}


def overload(run: Run) -> dict[str, Any]:
    """Send more than the proxy admits; what is refused is refused in the service's form."""
    with deployed(run.artifacts, max_requests=OVERLOADED) as cluster:
        with load(cluster.url, run._replace(connections=3 * OVERLOADED), retries=False) as tallies:
            time.sleep(5.0)
        client = AssignerClient(cluster.url)
        failed = fault(client, run.asked[0])  # it is as before
        client.close()
    part = _part(f"{3 * OVERLOADED} clients where {OVERLOADED} are admitted", tallies, refusals_allowed=True)
    return {**part, "failed": part["failed"] + failed}


def _part(what: str, tallies: Sequence[Tally], refusals_allowed: bool) -> dict[str, Any]:
    refused = sum((Counter(tally.refused) for tally in tallies), Counter())  # without those of zero
    failed = [text for tally in tallies for text in tally.failed]
    if refused and not refusals_allowed:
        failed.append(f"refused: {dict(refused)}")
    shown = f"{what}, refused {dict(refused)}" if refused else what
    answers = sum(tally.answers for tally in tallies)
    return {"what": shown, "answers": answers, "failed": failed, "refused": dict(refused)}


@contextmanager
def load(url: str, run: Run, *, retries: bool) -> Iterator[list[Tally]]:
    """Send requests from several processes until the end; the list then has what each of them saw."""
    stop, results = SPAWN.Event(), SPAWN.SimpleQueue()
    clients = [
        SPAWN.Process(target=_client, args=(results, url, run.asked, stop, retries, number))
        for number in range(run.connections)
    ]
    for client in clients:
        client.start()
    tallies: list[Tally] = []
    try:
        yield tallies
    finally:
        stop.set()
        tallies += [results.get() for _ in clients]
        for client in clients:
            client.join()


def _client(results: Any, *arguments: Any) -> None:
    results.put(ask_until(*arguments))


def ask_until(url: str, asked: Sequence[Asked], stop: Event, retries: bool, seed: int) -> Tally:
    """Send requests, one after the other, until told to stop."""
    chosen = random.Random(seed)  # noqa: S311
    answers, failed, refused = 0, list[str](), Counter[int]()
    with AssignerClient(url, retry=RETRIES if retries else ONCE) as client:
        while not stop.is_set():
            try:
                faults = fault(client, chosen.choice(asked))
            except ServerError as error:
                ours = error.status == BUSY and str(error).startswith(OURS)
                refused[BUSY] += ours
                faults = [] if ours else [f"{error.status}: {error}"]
            else:
                answers += not faults
            failed += faults
    return Tally(answers, failed, dict(refused))


def fault(client: AssignerClient, one: Asked) -> list[str]:
    """Ask, and say which outputs are not right to the bit.

    Raises:
        ServerError: There was no answer.
    """
    outputs = client.infer(one.model, one.inputs, tuple(one.outputs))
    return [f"{one.model}: {n} is wrong" for n in outputs if outputs[n].tobytes() != one.outputs[n].tobytes()]


def _wait_until(done: Callable[[], bool], text: str) -> float:
    """Seconds until something is done."""
    began = time.monotonic()
    while not done():
        if time.monotonic() > began + BACK_SECONDS:
            raise RuntimeError(f"{text} after {BACK_SECONDS:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - began


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "bodies": bodies,
    "kills": kills,
    "updates": updates,
    "scaled": scaled,
    "overload": overload,
}

if __name__ == "__main__":
    sys.exit(main())

"""The manifests for Kubernetes, built by ``kubectl kustomize``: valid for its schemas, and as the settings say."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.markdown import DOCS, blocks
from tests.serve.conftest import ROOT
from yolo_assigner.serve.settings import Settings, read_settings
from yolo_assigner.serve.system import PREFIX

OVERLAYS = ("cpu", "gpu", "kserve")
OWN = ("cpu", "gpu")  # those with a Deployment of their own; KServe makes one
# Of the Prometheus operator and of KServe; Kubernetes has no schemas for them.
FOREIGN = ("PodMonitor", "ClusterServingRuntime", "InferenceService")
IMAGE = {"YOLO_ASSIGNER_ARTIFACTS": "/artifacts", "YOLO_ASSIGNER_HOST": "0.0.0.0", "YOLO_ASSIGNER_PORT": "8000"}  # noqa: S104
METRICS = {"YOLO_ASSIGNER_METRICS_HOST": "0.0.0.0", "YOLO_ASSIGNER_METRICS_PORT": "8002"}  # noqa: S104
Manifest = dict[str, Any]
(PAGE,) = (page for page in DOCS if page.name == "kubernetes.md")

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@pytest.fixture(scope="module")
def built() -> dict[str, list[Manifest]]:
    """The manifests of each overlay."""
    commands = {overlay: ["kubectl", "kustomize", f"deploy/kubernetes/overlays/{overlay}"] for overlay in OVERLAYS}
    running = {
        overlay: subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for overlay, command in commands.items()
    }
    texts = {overlay: process.communicate()[0] for overlay, process in running.items()}
    assert [process.returncode for process in running.values()] == [0] * len(OVERLAYS)
    return {overlay: list(yaml.safe_load_all(text)) for overlay, text in texts.items()}


def of_kind(manifests: list[Manifest], kind: str) -> Manifest:
    """The only manifest of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    """Specification of the pods: of the Deployment, or of the runtime with the InferenceService's grace period."""
    if any(manifest["kind"] == "Deployment" for manifest in manifests):
        return dict(of_kind(manifests, "Deployment")["spec"]["template"]["spec"])
    runtime, service = (of_kind(manifests, kind)["spec"] for kind in FOREIGN[1:])
    pod = {name: runtime[name] for name in ("containers", "volumes")}
    return {**pod, "terminationGracePeriodSeconds": service["predictor"]["terminationGracePeriodSeconds"]}


def environment_of(manifests: list[Manifest]) -> dict[str, str]:
    """Variables that the manifests set, without those of the image."""
    (container,) = pod_of(manifests)["containers"]
    given = {entry["name"]: entry["value"] for entry in container.get("env", ())}
    for source in container.get("envFrom", ()):
        config = of_kind(manifests, "ConfigMap")
        assert source["configMapRef"]["name"] == config["metadata"]["name"]
        given |= config["data"]
    return given


def settings_of(manifests: list[Manifest]) -> Settings:
    """Settings of a pod's service."""
    return read_settings([], {**IMAGE, **METRICS, **environment_of(manifests)}).settings


def validated(manifest: Manifest) -> None:
    """Validate a manifest, without anything that the schema does not know.

    Raises:
        Exception: It is not valid.
    """
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate, of the extra dev")
    validate.validate(manifest, validate.latest_version(), strict=True)


def as_pod(overlay_pod: Manifest) -> Manifest:
    """A pod, for which Kubernetes has a schema."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": overlay_pod}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid(built: dict[str, list[Manifest]], overlay: str) -> None:
    known = [manifest for manifest in built[overlay] if manifest["kind"] not in FOREIGN]
    for manifest in (*known, as_pod(pod_of(built[overlay]))):
        validated(manifest)
    assert len(built[overlay]) == {"cpu": 7, "gpu": 7, "kserve": 2}[overlay]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_misspelt_probe_is_found(built: dict[str, list[Manifest]], overlay: str) -> None:
    """The API server would drop it, and the pods would get requests before their models are loaded."""
    pod = copy.deepcopy(pod_of(built[overlay]))
    (container,) = pod["containers"]
    container["readynessProbe"] = container.pop("readinessProbe")
    with pytest.raises(Exception, match="readynessProbe"):
        validated(as_pod(pod))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_setting_exists_and_can_be_used(built: dict[str, list[Manifest]], overlay: str) -> None:
    given = environment_of(built[overlay])
    assert len(given) > 3
    assert {name.removeprefix(PREFIX).lower() for name in given} <= set(Settings.model_fields)
    settings = settings_of(built[overlay])
    assert settings.lame_duck_seconds >= 5  # Kubernetes sends requests on for some seconds
    assert pod_of(built[overlay])["terminationGracePeriodSeconds"] > settings.lame_duck_seconds + settings.drain_seconds


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_setting_that_does_not_exist_would_be_found(built: dict[str, list[Manifest]], overlay: str) -> None:
    broken = [
        yaml.safe_load(yaml.safe_dump(manifest).replace("DRAIN_SECONDS", "DRAIN_TIME")) for manifest in built[overlay]
    ]
    names = {name.removeprefix(PREFIX).lower() for name in environment_of(broken)}
    assert names - set(Settings.model_fields) == {"drain_time"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_where_the_service_listens(built: dict[str, list[Manifest]], overlay: str) -> None:
    (container,) = pod_of(built[overlay])["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    paths = {"startup": "/v2/health/ready", "readiness": "/v2/health/ready", "liveness": "/v2/health/live"}
    for probe, path in paths.items():
        asked = container[f"{probe}Probe"]["httpGet"]
        assert asked["path"] == path
        assert ports.get(asked["port"], asked["port"]) == settings_of(built[overlay]).port
    if overlay in OWN:
        assert ports["metrics"] == settings_of(built[overlay]).metrics_port


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_may_do_no_more_than_they_need(built: dict[str, list[Manifest]], overlay: str) -> None:
    pod = pod_of(built[overlay])
    (container,) = pod["containers"]
    rights = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert (rights["runAsUser"], rights["runAsNonRoot"], rights["readOnlyRootFilesystem"]) == (10001, True, True)
    assert (rights["allowPrivilegeEscalation"], rights["capabilities"]) == (False, {"drop": ["ALL"]})
    assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
    resources = container["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]  # see docs/deploy.md, memory
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounted.values()) == set(volumes)
    assert "emptyDir" in volumes[mounted["/tmp"]]  # noqa: S108 - libraries write there
    keys = settings_of(built[overlay]).api_key_file
    assert keys is not None
    assert "secret" in volumes[mounted[str(keys.parent)]]


@pytest.mark.parametrize("overlay", OWN)
def test_what_selects_pods_selects_these_alone(built: dict[str, list[Manifest]], overlay: str) -> None:
    manifests = built[overlay]
    labels = of_kind(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    specs = {kind: of_kind(manifests, kind)["spec"] for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor")}
    assert {kind: spec["selector"]["matchLabels"] for kind, spec in specs.items()} == dict.fromkeys(specs, labels)
    assert of_kind(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert of_kind(manifests, "Service")["spec"]["selector"] == labels
    assert of_kind(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": of_kind(manifests, "Deployment")["metadata"]["name"],
    }
    # Else the Service of this name would set YOLO_ASSIGNER_PORT to a URL.
    assert pod_of(manifests)["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", OWN)
def test_metrics_are_open_to_prometheus_alone(built: dict[str, list[Manifest]], overlay: str) -> None:
    manifests = built[overlay]
    policy = of_kind(manifests, "NetworkPolicy")["spec"]
    sources = {entry["port"]: rule.get("from") for rule in policy["ingress"] for entry in rule["ports"]}
    assert sources["http"] is None
    assert sources["metrics"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert "egress" not in policy  # with the policy type Egress: nothing is reached
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (endpoint,) = of_kind(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"


def test_the_autoscaler_reads_a_metric_of_the_service(built: dict[str, list[Manifest]]) -> None:
    (metric,) = of_kind(built["cpu"], "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    watched = (ROOT / "serve/app.py").read_text(encoding="utf-8")
    assert f'"{name.removeprefix("yolo_assigner_")}"' in watched
    (adapter,) = (block.code for block in blocks(PAGE) if block.language == "yaml")
    (rule,) = yaml.safe_load(adapter)["rules"]
    assert rule["seriesQuery"].startswith(f"{name}{{")


def test_commands_of_the_page(built: dict[str, list[Manifest]], tmp_path: Path) -> None:
    """Its Secret has the file that the service reads; what it applies are overlays."""
    lines = [line for block in blocks(PAGE) if block.language == "sh" for line in block.code.splitlines()]
    (create,) = (line for line in lines if "create secret" in line)
    (tmp_path / "api-keys.txt").write_text("a-key-of-some-length\n")
    command = [*create.split(), "--dry-run=client", "--output=yaml"]
    secret = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout)
    for manifests in built.values():
        keys = settings_of(manifests).api_key_file
        assert keys is not None
        assert list(secret["data"]) == [keys.name]
        named = [volume["secret"]["secretName"] for volume in pod_of(manifests)["volumes"] if "secret" in volume]
        assert named == [secret["metadata"]["name"]]
    applied = {f"kubectl apply -k deploy/kubernetes/overlays/{overlay}" for overlay in OVERLAYS}
    assert {line for line in lines if line != create} <= applied

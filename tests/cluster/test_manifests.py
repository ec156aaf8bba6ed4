"""The manifests and the chart on a real API server: accepted, no pod refused by Pod Security, all pods scheduled."""

import subprocess
from pathlib import Path

import pytest
from go_programs import HELM, install_go_program

from .waiting import wait_for

pytestmark = pytest.mark.process
CHART = Path(__file__).resolve().parents[2] / "orchestration" / "kubernetes" / "chart"
OVERLAYS = ("cpu", "gpu", "multi-gpu", "s3", "trainjob", "trainjob-s3")
DEPLOYMENTS = {"exporter", "tokenizer", "trainer", "registry", "dashboard"}


@pytest.fixture(scope="module")
def helm():
    return install_go_program(HELM)


@pytest.fixture
def make_namespace(cluster):
    """Makes namespaces with volumes, which are gone after the test."""
    made = []

    def make(name):
        cluster.create_namespace(name)
        made.append(name)
        cluster.create_volumes(name)
        return name

    yield make
    for name in made:
        cluster.control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_of_an_overlay_is_admitted_and_scheduled(cluster, make_namespace, overlay):
    namespace = make_namespace(f"overlay-{overlay}")
    cluster.apply_overlay(overlay, namespace)
    require_scheduled(cluster, namespace)


@pytest.mark.exhaustive  # it needs Helm
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_of_the_chart_is_admitted_and_scheduled(cluster, make_namespace, helm, overlay):
    namespace = make_namespace(f"chart-{overlay}")
    version = cluster.control_plane.api.get("/version")["gitVersion"]
    options = ["--values", CHART / "overlays" / f"{overlay}.yaml", "--kube-version", version]
    command = [helm, "template", "gpt2", CHART, "--namespace", namespace, *options]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    cluster.apply("--filename=-", content=rendered.stdout)
    require_scheduled(cluster, namespace)


def require_scheduled(cluster, namespace):
    """Waits until each Deployment has a pod on the node, and each claim a volume."""

    def scheduled():
        pods = cluster.objects(namespace, "pods")
        return {
            pod["metadata"]["labels"]["app.kubernetes.io/name"]
            for pod in pods
            if pod["spec"].get("nodeName") == cluster.node.name
        } == DEPLOYMENTS

    def why():
        events = cluster.objects(namespace, "events")
        return "\n".join(f"{event['involvedObject']['name']}: {event.get('message')}" for event in events)

    wait_for(scheduled, why)
    claims = cluster.objects(namespace, "persistentvolumeclaims")
    assert claims
    assert {claim["status"]["phase"] for claim in claims} == {"Bound"}


def test_a_pod_that_pod_security_forbids_is_refused(cluster):
    cluster.create_namespace("refusal")
    # Nothing in it says that it runs as no root, and with no more rights than it needs.
    content = {"metadata": {"name": "main"}, "spec": {"containers": [{"name": "main", "image": "main"}]}}
    answer = cluster.control_plane.api.call("POST", "/api/v1/namespaces/refusal/pods", content)
    assert answer.status_code == 403
    assert 'violates PodSecurity "restricted' in answer.json()["message"]

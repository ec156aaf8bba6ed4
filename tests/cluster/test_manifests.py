"""The manifests on a real API server: accepted, no pod refused by Pod Security, all pods scheduled."""

import pytest

from .waiting import wait_for

pytestmark = pytest.mark.process
OVERLAYS = ("cpu", "gpu", "multi-gpu", "s3", "trainjob", "trainjob-s3")
DEPLOYMENTS = {"exporter", "tokenizer", "trainer", "registry", "dashboard"}


@pytest.fixture(params=OVERLAYS)
def overlay(request, cluster):
    """An overlay that is applied, and its namespace."""
    namespace = f"overlay-{request.param}"
    cluster.create_namespace(namespace)
    cluster.create_volumes(namespace)
    printed = cluster.apply_overlay(request.param, namespace)
    assert "Warning" not in printed
    yield request.param, namespace
    cluster.control_plane.kubectl("delete", "namespace", namespace, "--wait=false")


def test_every_pod_of_an_overlay_is_admitted_and_scheduled(cluster, overlay):
    _, namespace = overlay

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

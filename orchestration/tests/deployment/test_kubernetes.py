"""What kustomize makes of each overlay fits the Kubernetes schemas and the services' own settings."""

import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from gpt2_orchestration.calls import DEFAULT_PORTS
from gpt2_orchestration.dashboard.settings import DashboardSettings

VERSIONS = ("1.30", "1.34")
OVERLAYS = ("cpu", "gpu", "multi-gpu")
SECRETS = {"mongodb-uri", "auth-token", *(f"{service}-database-url" for service in DEFAULT_PORTS)}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request, root):
    """An overlay's name and its objects by kind and name."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl, for its kustomize")
    command = ["kubectl", "kustomize", root / "orchestration/kubernetes/overlays" / request.param]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    objects = {(entry["kind"], entry["metadata"]["name"]): entry for entry in yaml.safe_load_all(text)}
    return request.param, objects


def pod_of(objects, service):
    return objects["Deployment", service]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(overlay, version):
    _, objects = overlay
    for entry in objects.values():
        assert kubernetes_validate.validate(entry, version, strict=True).startswith(version)


@pytest.mark.parametrize(("service", "port"), DEFAULT_PORTS.items())
def test_a_service_knows_its_variables_port_and_probes(overlay, known_to, service, port):
    _, objects = overlay
    (container,) = pod_of(objects, service)["containers"]
    (source,) = container["envFrom"]
    variables = dict(objects["ConfigMap", source["configMapRef"]["name"]]["data"])
    shared = {"GPT2_MLFLOW_TRACKING_URI"}
    if service != "registry":
        variables = {name: value for name, value in variables.items() if name not in shared}
    for entry in container["env"]:
        reference = entry.get("valueFrom", {}).get("secretKeyRef", {"key": None})
        assert "value" in entry or reference["key"] in SECRETS
        variables[entry["name"]] = entry.get("value", "secret")
    settings = known_to(service, variables)
    assert settings.listen == f"0.0.0.0:{port}"
    assert {container[probe]["grpc"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {port}
    assert [entry["containerPort"] for entry in container["ports"]] == [port]
    assert [entry["port"] for entry in objects["Service", service]["spec"]["ports"]] == [port]


@pytest.mark.parametrize("service", [*DEFAULT_PORTS, "dashboard"])
def test_a_pod_has_no_more_rights_than_it_needs(overlay, service):
    _, objects = overlay
    pod = pod_of(objects, service)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = [mount for container in pod["containers"] for mount in container["volumeMounts"]]
    assert {"/data", "/tmp"} <= {mount["mountPath"] for mount in mounts}
    assert {mount["name"] for mount in mounts} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("service", DEFAULT_PORTS)
def test_selectors_find_the_service(overlay, service):
    _, objects = overlay
    labels = objects["Deployment", service]["spec"]["template"]["metadata"]["labels"]
    budget = objects["PodDisruptionBudget", service]["spec"]["selector"]["matchLabels"]
    for selector in (objects["Service", service]["spec"]["selector"], budget):
        assert selector.items() <= labels.items()
    for policy in ("callers", "outbound"):
        assert objects["NetworkPolicy", policy]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_dashboard_knows_its_variables_and_lets_nobody_in(overlay):
    _, objects = overlay
    pod = pod_of(objects, "dashboard")
    container, tensorboard = pod["containers"]
    variables = {entry["name"]: entry.get("value", "secret") for entry in container["env"]}
    settings = DashboardSettings.from_environment(variables)
    assert settings.client.addresses == {service: f"{service}:{port}" for service, port in DEFAULT_PORTS.items()}
    assert settings.client.token == "secret"
    assert [port["containerPort"] for port in container["ports"]] == [settings.port]
    assert {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")} == {"/healthz"}
    assert f"--port={settings.tensorboard_uri.rpartition(':')[2]}" in tensorboard["command"]
    policy = objects["NetworkPolicy", "dashboard"]["spec"]
    labels = objects["Deployment", "dashboard"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert "Ingress" in policy["policyTypes"]
    assert not policy.get("ingress")
    assert labels["gpt2/client"] == "true"
    assert ("Service", "dashboard") not in objects


def test_the_trainer_asks_for_the_overlays_gpus(overlay):
    name, objects = overlay
    pod = pod_of(objects, "trainer")
    gpus = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
    assert int(gpus) == {"cpu": 0, "gpu": 1, "multi-gpu": 8}[name]
    assert ("nodeSelector" in pod) == bool(gpus)
    assert any(entry["key"] == "nvidia.com/gpu" for entry in pod.get("tolerations", [])) == bool(gpus)

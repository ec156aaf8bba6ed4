"""What kustomize makes of each overlay fits the Kubernetes schemas and the services' own settings."""

import os
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

from gpt2_orchestration.calls import DEFAULT_PORTS
from gpt2_orchestration.dashboard.settings import DashboardSettings

VERSIONS = ("1.30", "1.34")
OVERLAYS = ("cpu", "gpu", "multi-gpu", "s3", "trainjob", "trainjob-s3")
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"
S3_SECRETS = {"AWS_ACCESS_KEY_ID": "access-key", "AWS_SECRET_ACCESS_KEY": "secret-key"}
SECRETS = {"mongodb-uri", "auth-token", *(f"{service}-database-url" for service in DEFAULT_PORTS)}


@pytest.fixture(scope="module")
def kustomize(tmp_path_factory):
    if not shutil.which("go"):
        pytest.skip("needs Go, to build kustomize")
    folder = tmp_path_factory.mktemp("kustomize")
    environment = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0"}
    subprocess.run(["go", "install", KUSTOMIZE], env=environment, check=True, timeout=800)
    return folder / "kustomize"


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request, root, kustomize):
    """An overlay's name and its objects by kind and name."""
    command = [kustomize, "build", root / "orchestration/kubernetes/overlays" / request.param]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    objects = {(entry["kind"], entry["metadata"]["name"]): entry for entry in yaml.safe_load_all(text)}
    return request.param, objects


def pod_of(objects, service):
    return objects["Deployment", service]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(overlay, version):
    _, objects = overlay
    for entry in objects.values():
        assert entry["metadata"]["namespace"] == "gpt2"
        if entry["kind"] == "TrainingRuntime":
            continue
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
        if entry["name"] in S3_SECRETS:
            continue
        reference = entry.get("valueFrom", {}).get("secretKeyRef", {"key": None})
        assert "value" in entry or reference["key"] in SECRETS
        variables[entry["name"]] = entry.get("value", "secret")
    variables = {name: value for name, value in variables.items() if not name.startswith("AWS_")}
    settings = known_to(service, variables)
    assert settings.artifact_root == ("s3://gpt2/artifacts" if "s3" in overlay[0] else "file:///data/artifacts")
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
    assert pod["automountServiceAccountToken"] == (service == "trainer" and "trainjob" in overlay[0])
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = [mount for container in pod["containers"] for mount in container["volumeMounts"]]
    folders = {"/tmp"} if service == "dashboard" and "s3" in overlay[0] else {"/data", "/tmp"}
    assert folders <= {mount["mountPath"] for mount in mounts}
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
    name, objects = overlay
    pod = pod_of(objects, "dashboard")
    container, *others = pod["containers"]
    variables = {entry["name"]: entry.get("value", "secret") for entry in container["env"]}
    settings = DashboardSettings.from_environment(variables)
    assert settings.client.addresses == {service: f"{service}:{port}" for service, port in DEFAULT_PORTS.items()}
    assert settings.client.token == "secret"
    assert [port["containerPort"] for port in container["ports"]] == [settings.port]
    assert {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")} == {"/healthz"}
    assert len(others) == (0 if "s3" in name else 1)
    for tensorboard in others:
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
    assert int(gpus) == {"gpu": 1, "multi-gpu": 8}.get(name, 0)
    assert ("nodeSelector" in pod) == bool(gpus)
    assert any(entry["key"] == "nvidia.com/gpu" for entry in pod.get("tolerations", [])) == bool(gpus)


@pytest.mark.parametrize("service", DEFAULT_PORTS)
def test_each_service_has_the_key_of_the_s3_store_and_a_volume_of_its_own(overlay, service):
    name, objects = overlay
    pod = pod_of(objects, service)
    (container,) = pod["containers"]
    references = {entry["name"]: entry.get("valueFrom", {}).get("secretKeyRef") for entry in container["env"]}
    keys = {variable: {"name": "gpt2-s3", "key": key} for variable, key in S3_SECRETS.items()}
    assert {variable: references.get(variable) for variable in keys} == (keys if "s3" in name else dict.fromkeys(keys))
    [claim] = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] == "data"]
    assert claim == (f"scratch-{service}" if "s3" in name else "artifacts")
    modes = objects["PersistentVolumeClaim", claim]["spec"]["accessModes"]
    assert modes == (["ReadWriteOnce"] if "s3" in name else ["ReadWriteMany"])


def test_the_runtime_of_trainjobs_fits_kubeflows_own_schema_and_the_trainers_settings(
    overlay, known_to, kubeflow_schemas
):
    name, objects = overlay
    if "trainjob" not in name:
        assert not [kind for kind, _ in objects if kind in ("TrainingRuntime", "Role")]
        return
    runtime = objects["TrainingRuntime", "gpt2-trainer"]
    jsonschema.Draft202012Validator(kubeflow_schemas["TrainingRuntime"]).validate(runtime)
    [job] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (job["name"], container["name"]) == ("node", "node")
    assert container["envFrom"] == pod_of(objects, "trainer")["containers"][0]["envFrom"]
    assert pod["securityContext"] == pod_of(objects, "trainer")["securityContext"]
    assert container["securityContext"] == pod_of(objects, "trainer")["containers"][0]["securityContext"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "emptyDir" not in volume}
    assert claims == {"scratch-trainings" if "s3" in name else "artifacts"}
    assert ("PersistentVolumeClaim", *claims) in objects
    variables = {entry["name"]: entry["value"] for entry in trainjob_variables(objects)}
    settings = known_to("trainer", variables)
    assert settings.trainjob_runtime == "TrainingRuntime/gpt2-trainer"
    references = {variable: ("gpt2-s3", key) for variable, key in S3_SECRETS.items()}
    assert settings.secret_references == (references if "s3" in name else {})


def trainjob_variables(objects):
    (container,) = pod_of(objects, "trainer")["containers"]
    return [entry for entry in container["env"] if "TRAIN" in entry["name"]]


def test_the_trainers_account_has_its_role_and_reaches_the_api(overlay):
    name, objects = overlay
    if "trainjob" not in name:
        assert not [kind for kind, _ in objects if kind in ("ServiceAccount", "RoleBinding")]
        return
    binding = objects["RoleBinding", "trainer"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "trainer", "namespace": "gpt2"}]
    assert binding["roleRef"]["name"] == objects["Role", "trainer"]["metadata"]["name"]
    assert pod_of(objects, "trainer")["serviceAccountName"] == "trainer"
    assert ("NetworkPolicy", "trainer-kubernetes") in objects

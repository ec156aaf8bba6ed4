"""What kustomize makes of each overlay fits the Kubernetes schemas and the services' own settings."""

import os
import re
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

from gpt2_common.readiness import LIVENESS
from gpt2_orchestration.client.addresses import DEFAULT_PORTS, address_variable
from gpt2_orchestration.dashboard.settings import DashboardSettings
from gpt2_orchestration.pipelines.specification import load_specification

VERSIONS = ("1.30", "1.34")
OVERLAYS = ("cpu", "gpu", "multi-gpu", "s3", "trainjob", "trainjob-s3")
S3_SECRETS = {"AWS_ACCESS_KEY_ID": "access-key", "AWS_SECRET_ACCESS_KEY": "secret-key"}
SECRETS = {"mongodb-uri", "auth-token", *(f"{service}-database-url" for service in DEFAULT_PORTS)}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request, root, kustomize):
    """An overlay's name and its objects by kind and name."""
    return request.param, build(kustomize, root / "orchestration/kubernetes/overlays" / request.param)


def build(kustomize, folder):
    """The objects of a kustomization by kind and name."""
    command = [kustomize, "build", folder]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in yaml.safe_load_all(text)}


def containers_of(objects):
    """All containers of all pods, also of TrainJobs."""
    pods = [entry["spec"]["template"]["spec"] for (kind, _), entry in objects.items() if kind == "Deployment"]
    runtimes = [entry["spec"]["template"]["spec"] for (kind, _), entry in objects.items() if kind == "TrainingRuntime"]
    pods += [job["template"]["spec"]["template"]["spec"] for runtime in runtimes for job in runtime["replicatedJobs"]]
    return [container for pod in pods for container in pod["containers"]]


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
    # A volume that cannot be written makes a service not ready; to restart it would not help.
    asked = [container[probe]["grpc"].get("service") for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert asked == [LIVENESS, None, LIVENESS]
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
    variables = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    trains_on_gpus = bool(gpus) or "trainjob" in name
    assert variables.get("GPT2_KERAS_BACKEND") == ("jax" if trains_on_gpus else None)
    assert ("nodeSelector" in pod) == bool(gpus)
    assert any(entry["key"] == "nvidia.com/gpu" for entry in pod.get("tolerations", [])) == bool(gpus)


@pytest.mark.parametrize("service", DEFAULT_PORTS)
def test_each_service_has_the_key_of_the_s3_store_and_its_own_volume(overlay, service):
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


def test_every_container_has_the_image_of_this_version_and_keeps_the_policy_of_pulling_it(overlay, root):
    """Without a policy, the API server stores the default for an object's first tag, and keeps it for later ones."""
    name, objects = overlay
    version = re.search(r'^version = "(.*)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)[1]
    containers = containers_of(objects)
    assert {container["image"].partition(":")[2] for container in containers} == {version}
    assert {container["imagePullPolicy"] for container in containers} == {"IfNotPresent"}
    if "trainjob" in name:
        [image] = [entry["value"] for entry in trainjob_variables(objects) if entry["name"] == "GPT2_TRAINJOB_IMAGE"]
        assert image == f"gpt2-trainer-gpu:{version}"


def test_an_overlay_sets_registry_tag_and_digest_of_every_image(kustomize, root, tmp_path):
    digest = f"sha256:{'0123456789abcdef' * 4}"
    names = ["exporter", "tokenizer", "trainer", "trainer-gpu", "registry", "airflow"]
    images = [
        {"name": f"gpt2-{name}", "newName": f"r.example.com/gpt2-{name}", "newTag": "1.2.3", "digest": digest}
        for name in names
    ]
    base = os.path.relpath(root / "orchestration/kubernetes/overlays/trainjob", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [base], "images": images}))
    objects = build(kustomize, tmp_path)
    [of_trainjobs] = [entry["value"] for entry in trainjob_variables(objects) if entry["name"] == "GPT2_TRAINJOB_IMAGE"]
    found = {container["image"] for container in containers_of(objects)} | {of_trainjobs}
    assert found == {f"r.example.com/gpt2-{name}:1.2.3@{digest}" for name in names}


def test_an_idle_stack_asks_for_little(overlay):
    """Idle, all processes take 0.02 of a core (benchmarks/idle.py); what asks for more is where trainings run."""
    name, objects = overlay
    if name in ("gpu", "multi-gpu"):
        return
    requests = [
        container["resources"]["requests"]["cpu"] for container in containers_of(objects) if "resources" in container
    ]
    assert sum(int(request.removesuffix("m")) for request in requests) <= 600


def test_every_probe_waits_for_an_answer_longer_than_a_busy_service_takes(overlay):
    _, objects = overlay
    probes = [
        probe
        for container in containers_of(objects)
        for kind in ("startupProbe", "readinessProbe", "livenessProbe")
        if (probe := container.get(kind))
    ]
    assert min(probe.get("timeoutSeconds", 1) for probe in probes) >= 5


@pytest.fixture(scope="module")
def compiled_tasks(tmp_path_factory, root):
    """The containers of a compiled pipeline, and their platform settings, by task."""
    from gpt2_orchestration.runners.kubeflow.compiling import KubeflowSettings, compile_pipeline  # loads KFP

    output = tmp_path_factory.mktemp("kubeflow") / "pipeline.yaml"
    specification = load_specification(root / "orchestration/examples/scratch-files.yaml")
    compile_pipeline(specification, KubeflowSettings(image="gpt2:1", token_secret="gpt2"), output)
    pipeline, platform = yaml.safe_load_all(output.read_text())
    executors = pipeline["deploymentSpec"]["executors"]
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == settings.keys()
    return [(executors[name]["container"], settings[name]) for name in executors]


def test_the_pods_of_a_compiled_pipeline_are_let_in_from_their_namespace(overlay, compiled_tasks):
    _, objects = overlay
    [rule] = objects["NetworkPolicy", "callers"]["spec"]["ingress"]
    own, other = rule["from"]
    assert own == {"podSelector": other["podSelector"]}
    assert other["namespaceSelector"] == {"matchLabels": {"gpt2/clients": "true"}}
    for _, settings in compiled_tasks:
        assert own["podSelector"]["matchLabels"].items() <= settings["podMetadata"]["labels"].items()


def test_a_compiled_pipeline_reads_the_token_by_the_key_that_the_services_read(overlay, compiled_tasks):
    _, objects = overlay
    variables = pod_of(objects, "exporter")["containers"][0]["env"]
    [key] = [entry["valueFrom"]["secretKeyRef"]["key"] for entry in variables if entry["name"] == "GPT2_AUTH_TOKEN"]
    for _, settings in compiled_tasks:
        [secret] = settings["secretAsEnv"]
        assert secret["keyToEnv"] == [{"secretKey": key, "envVar": "GPT2_CLIENT_TOKEN"}]


def test_a_compiled_pipeline_calls_the_services_where_they_are(overlay, compiled_tasks):
    from gpt2_orchestration.runners.kubeflow.compiling import parse_addresses

    _, objects = overlay
    for container, _ in compiled_tasks:
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        for service in DEFAULT_PORTS:
            host, port = variables[address_variable(service)].split(":")
            name, namespace = host.split(".")
            found = objects["Service", name]
            assert found["metadata"]["namespace"] == namespace
            assert int(port) in [entry["port"] for entry in found["spec"]["ports"]]
    assert parse_addresses(["trainer=t:1"])["trainer"] == "t:1"


def test_the_clients_component_gives_each_caller_its_token_and_no_shared_one(kustomize, root, tmp_path, known_to):
    folders = {
        name: os.path.relpath(root / "orchestration/kubernetes" / name, tmp_path) for name in ("base", "components")
    }
    kustomization = {"resources": [folders["base"]], "components": [f"{folders['components']}/clients"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    objects = build(kustomize, tmp_path)
    for entry in objects.values():
        assert kubernetes_validate.validate(entry, VERSIONS[0], strict=True).startswith(VERSIONS[0])
    for service in (*DEFAULT_PORTS, "dashboard"):
        pod = pod_of(objects, service)
        container = pod["containers"][0]
        variables = {entry["name"]: entry for entry in container["env"]}
        assert "GPT2_AUTH_TOKEN" not in variables
        token = variables["GPT2_CLIENT_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert token == {"name": "gpt2-client-tokens", "key": "dashboard" if service == "dashboard" else "services"}
        if service == "dashboard":
            continue
        config = objects["ConfigMap", container["envFrom"][0]["configMapRef"]["name"]]["data"]
        settings = known_to(service, {"GPT2_CLIENTS_FILE": config["GPT2_CLIENTS_FILE"]})
        [mount] = [
            mount for mount in container["volumeMounts"] if mount["mountPath"] == str(settings.clients_file.parent)
        ]
        assert "subPath" not in mount
        [volume] = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
        assert volume["secret"]["secretName"] == "gpt2-clients"

"""The Helm chart makes what the kustomizations make, and with all its values what fits the schemas of Kubernetes.

Part of `make test-cluster`: Go builds Helm in minutes.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from go_programs import HELM, install_go_program

pytestmark = pytest.mark.process
VERSIONS = ("1.30", "1.34")
OVERLAYS = ("cpu", "gpu", "multi-gpu", "s3", "trainjob", "trainjob-s3")
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
IMAGES = ("exporter", "tokenizer", "trainer", "trainer-gpu", "registry", "airflow")
COMPOSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clients": (
        {"resources": ["base"], "components": ["components/clients"]},
        {"authentication": {"clients": {"enabled": True}}},
    ),
    "several nodes with S3": (
        {"resources": ["overlays/trainjob-s3"], "components": ["components/s3-several-nodes"]},
        {
            "trainJobs": {"enabled": True},
            "s3": {"enabled": True},
            "storage": {"scratch": {"trainings": {"accessMode": "ReadWriteMany"}}},
        },
    ),
    "images": (
        {
            "resources": ["overlays/trainjob"],
            "images": [
                {"name": f"gpt2-{name}", "newName": f"r.example.com/a/gpt2-{name}", "newTag": "1.2.3", "digest": DIGEST}
                for name in IMAGES
            ],
        },
        {
            "trainJobs": {"enabled": True},
            "image": {
                "registry": "r.example.com/a",
                "tag": "1.2.3",
                "digests": {f"gpt2-{name}": DIGEST for name in IMAGES},
            },
        },
    ),
}
"""Kustomizations of components, and the values that mean the same."""

ALLOWED = {
    r"/metadata/labels/(app\.kubernetes\.io/(instance|managed-by|part-of|version)|helm\.sh/chart)$": "a convention",
    r"/spec/template/metadata/annotations/checksum/config$": "the ConfigMap keeps its name, and this restarts pods",
    r"^PersistentVolumeClaim .*/metadata/annotations/helm\.sh/resource-policy$": "`helm uninstall` keeps data",
}
"""Differences, by a pattern of their paths, and why they are right."""
ALLOWED_WITHOUT_TRAINJOBS = {
    r"^PersistentVolumeClaim scratch-trainings/": "the component s3 cannot know that there are no TrainJobs",
    r"^Deployment trainer/.*/env/GPT2_TRAINJOB_(SECRETS|MAX_NODES)/": "so here",
}

EVERYTHING = """
image: {registry: "r.example.com:5000/team", tag: "1.2.3", pullSecrets: [pull], pullPolicy: Always}
authentication: {sharedToken: {secret: token, key: value}}
postgresql:
  port: 6432
  urls:
    exporter: {secret: exporter-app, key: uri}
    tokenizer: {secret: tokenizer-app, key: uri}
    trainer: {secret: trainer-app, key: uri}
    registry: {secret: registry-app, key: uri}
mongodb: {port: 27018, uri: {secret: mongodb, key: uri}}
kafka: {bootstrapServers: "a.example.com:9094,b.example.com:9095", topic: events}
mlflow:
  trackingUri: https://mlflow.example.com/path
  credentials: {secret: mlflow, userKey: user, passwordKey: password}
storage: {className: fast, scratch: {trainings: {size: 1Ti, accessMode: ReadWriteMany}}}
s3: {enabled: true, endpoint: "http://minio.example.com:9000", credentials: {secret: ""}}
gpus: {nodeSelector: {pool: gpu}, tolerations: [], sharedMemory: 32Gi}
trainJobs: {enabled: true, gpus: 8, cpu: "16", memory: 192Gi, kubernetesApiPort: 443}
settings: {GPT2_QUEUE_LIMIT: "20"}
services:
  exporter:
    env: [{name: GPT2_MONGODB_READERS, value: "4"}]
    serviceAccount: {annotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::1:role/exporter"}}
  trainer: {serviceAccount: {annotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::1:role/trainer"}}}
  trainings: {serviceAccount: {annotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::1:role/trainings"}}}
ingress:
  className: nginx
  controller: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}}]
  dashboard:
    enabled: true
    host: gpt2.example.com
    tlsSecret: gpt2-tls
    annotations: {nginx.ingress.kubernetes.io/auth-url: "https://login.example.com/oauth2/auth"}
  grpc:
    enabled: true
    domain: gpt2.example.com
    tlsSecret: gpt2-grpc-tls
    annotations: {nginx.ingress.kubernetes.io/backend-protocol: GRPC}
networkPolicies:
  clientNamespaces: [{matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [team-a]}]}]
  stores: [{ipBlock: {cidr: 10.1.0.0/16}}]
"""
"""Values of all kinds, beside those of the overlays."""

Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def helm() -> Path:
    return install_go_program(HELM)


@pytest.fixture(scope="module")
def chart(root: Path) -> Path:
    return root / "orchestration/kubernetes/chart"


@pytest.fixture
def render(helm: Path, chart: Path, tmp_path: Path):
    """Renders the chart with values, or with those of an overlay. Gives Helm's result."""

    def run(values: str | dict[str, Any], command: str = "template") -> subprocess.CompletedProcess[str]:
        if isinstance(values, str):
            file = chart / "overlays" / f"{values}.yaml"
        else:
            file = tmp_path / "values.yaml"
            file.write_text(yaml.safe_dump(values))
        rest = {
            "template": ["gpt2", chart, "--namespace", "gpt2", "--kube-version", VERSIONS[-1]],
            "lint": [chart, "--strict", "--kube-version", VERSIONS[-1]],
        }[command]
        return subprocess.run(
            [helm, command, *rest, "--values", file], capture_output=True, text=True, timeout=300, cwd=tmp_path
        )

    return run


def objects_of(text: str) -> Objects:
    """Objects by kind and name; none may be there twice."""
    entries = [entry for entry in yaml.safe_load_all(text) if entry]
    objects = {(entry["kind"], entry["metadata"]["name"]): entry for entry in entries}
    assert len(objects) == len(entries)
    return objects


def rendered(result: subprocess.CompletedProcess[str]) -> Objects:
    assert result.returncode == 0, result.stderr
    return objects_of(result.stdout)


def customized(kustomize: Path, folder: Path) -> Objects:
    """What kustomize makes, with the ConfigMap, which it names after a hash of its content, under its own name."""
    text = subprocess.run([kustomize, "build", folder], check=True, capture_output=True, text=True, timeout=300).stdout
    return objects_of(re.sub(r"\bgpt2-[0-9a-z]{10}$", "gpt2", text, flags=re.MULTILINE))


def facts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every scalar and empty container with its path, in which objects in lists go by their names, else content."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from facts(inner, f"{path}/{key}")
    elif isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value):
        keys = [str(inner.get("mountPath") or inner.get("name") or sorted(facts(inner, ""))) for inner in value]
        assert len(set(keys)) == len(keys), f"{path} has something twice: {keys}"
        for key, inner in zip(keys, value, strict=True):
            yield from facts(inner, f"{path}/{key}")
    else:
        yield path, value


def differences(ours: Objects, theirs: Objects, allowed: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    """What differs, by path: in the first and in the second."""
    found = [
        {path: value for (kind, name), entry in objects.items() for path, value in facts(entry, f"{kind} {name}")}
        for objects in (ours, theirs)
    ]
    return {
        path: (found[0].get(path), found[1].get(path))
        for path in sorted({*found[0], *found[1]})
        if found[0].get(path) != found[1].get(path) and not any(re.search(pattern, path) for pattern in allowed)
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_chart_makes_what_an_overlay_makes(render, kustomize, root, overlay):
    objects = rendered(render(overlay))
    allowed = ALLOWED | (ALLOWED_WITHOUT_TRAINJOBS if overlay == "s3" else {})
    expected = customized(kustomize, root / "orchestration/kubernetes/overlays" / overlay)
    assert differences(objects, expected, allowed) == {}


@pytest.mark.parametrize("name", COMPOSED)
def test_the_chart_makes_what_components_make(render, kustomize, root, tmp_path, name):
    kustomization, values = COMPOSED[name]
    manifests = root / "orchestration/kubernetes"
    paths = {
        key: [os.path.relpath(manifests / path, tmp_path) for path in kustomization[key]]
        for key in ("resources", "components")
        if key in kustomization
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization | paths))
    assert differences(rendered(render(values)), customized(kustomize, tmp_path), ALLOWED) == {}


def test_a_difference_is_found():
    """That the comparison itself can fail, in a value, a missing element and a missing object."""
    ours: Objects = {
        ("A", "a"): {"env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
        ("B", "b"): {"c": 1},
    }
    theirs: Objects = {("A", "a"): {"env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "3"}]}}
    assert differences(ours, theirs, {}) == {
        "A a/env/X/value": ("1", "3"),
        "B b/c": (1, None),
    }


@pytest.mark.parametrize("values", [*OVERLAYS, yaml.safe_load(EVERYTHING)], ids=[*OVERLAYS, "everything"])
def test_helm_finds_nothing_wrong(render, values):
    result = render(values, "lint")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def everything(render) -> Objects:
    return rendered(render(yaml.safe_load(EVERYTHING)))


def test_every_object_of_every_option_fits_its_schema(everything, kubeflow_schemas):
    kinds = set()
    for (kind, _), entry in everything.items():
        kinds.add(kind)
        assert entry["metadata"]["namespace"] == "gpt2"
        if kind == "TrainingRuntime":
            jsonschema.Draft202012Validator(kubeflow_schemas[kind]).validate(entry)
            continue
        for version in VERSIONS:
            assert kubernetes_validate.validate(entry, version, strict=True).startswith(version)
    assert {"Ingress", "ServiceAccount", "TrainingRuntime", "NetworkPolicy"} <= kinds


def pod_of(objects: Objects, name: str) -> dict[str, Any]:
    return objects["Deployment", name]["spec"]["template"]["spec"]


def variables_of(objects: Objects, name: str) -> dict[str, Any]:
    return {
        entry["name"]: entry.get("value") or entry["valueFrom"]
        for entry in pod_of(objects, name)["containers"][0]["env"]
    }


def test_addresses_and_secrets_of_external_stores_reach_the_services(everything, known_to):
    config = everything["ConfigMap", "gpt2"]["data"]
    assert config["GPT2_KAFKA_BOOTSTRAP_SERVERS"] == "a.example.com:9094,b.example.com:9095"
    assert config["GPT2_MLFLOW_TRACKING_URI"] == "https://mlflow.example.com/path"
    assert config["AWS_ENDPOINT_URL"] == "http://minio.example.com:9000"
    assert config["GPT2_QUEUE_LIMIT"] == "20"
    exporter, registry = variables_of(everything, "exporter"), variables_of(everything, "registry")
    assert exporter["GPT2_DATABASE_URL"] == {"secretKeyRef": {"name": "exporter-app", "key": "uri"}}
    assert exporter["GPT2_MONGODB_URI"] == {"secretKeyRef": {"name": "mongodb", "key": "uri"}}
    assert registry["MLFLOW_TRACKING_PASSWORD"] == {"secretKeyRef": {"name": "mlflow", "key": "password"}}
    assert not [name for name in exporter if name.startswith("AWS_")]
    known_to("exporter", {"GPT2_MONGODB_READERS": exporter["GPT2_MONGODB_READERS"]})
    known_to(
        "exporter",
        {
            name: value
            for name, value in config.items()
            if name != "GPT2_MLFLOW_TRACKING_URI" and name.startswith("GPT2_")
        },
    )


def test_network_policies_open_what_the_values_ask_for_and_no_more(everything):
    def ports(rule):
        return sorted(port["port"] for port in rule["ports"])

    outbound = everything["NetworkPolicy", "outbound"]["spec"]["egress"]
    stores = [443, 6432, 9094, 9095, 27018]
    assert [(rule.get("to"), ports(rule)) for rule in outbound[1:]] == [
        ([{"podSelector": {}}], [*stores, 50051, 50052, 50053, 50054]),
        ([{"ipBlock": {"cidr": "10.1.0.0/16"}}], stores),
        (None, [443, 9000]),
    ]
    [callers] = everything["NetworkPolicy", "callers"]["spec"]["ingress"]
    controller = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}
    assert callers["from"][-1] == controller
    assert callers["from"][1]["namespaceSelector"]["matchExpressions"][0]["values"] == ["team-a"]
    [browsers] = everything["NetworkPolicy", "dashboard"]["spec"]["ingress"]
    assert browsers == {"from": [controller], "ports": [{"protocol": "TCP", "port": "http"}]}


def test_an_ingress_has_tls_and_leads_to_a_port_that_is_there(everything):
    for name in ("dashboard", "grpc"):
        spec = everything["Ingress", name]["spec"]
        [tls] = spec["tls"]
        assert tls["hosts"] == [rule["host"] for rule in spec["rules"]]
        for rule in spec["rules"]:
            [path] = rule["http"]["paths"]
            backend = path["backend"]["service"]
            service = everything["Service", backend["name"]]["spec"]
            assert backend["port"]["name"] in [port["name"] for port in service["ports"]]
            selected = everything["Deployment", backend["name"]]["spec"]["template"]["metadata"]["labels"]
            assert service["selector"].items() <= selected.items()
    assert variables_of(everything, "dashboard")["GPT2_DASHBOARD_HOSTS"] == "gpt2.example.com"
    assert everything["Ingress", "dashboard"]["metadata"]["annotations"]


def test_service_accounts_with_annotations_are_those_of_the_pods(everything):
    accounts = {name: entry for (kind, name), entry in everything.items() if kind == "ServiceAccount"}
    assert accounts.keys() == {"exporter", "trainer", "trainings"}
    for name in ("exporter", "trainer"):
        assert pod_of(everything, name)["serviceAccountName"] == name
        assert accounts[name]["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].endswith(name)
    assert "serviceAccountName" not in pod_of(everything, "tokenizer")
    [job] = everything["TrainingRuntime", "gpt2-trainer"]["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"]["spec"]["serviceAccountName"] == "trainings"


def test_without_network_policies_there_are_none(render):
    assert not [
        kind for kind, _ in rendered(render({"networkPolicies": {"enabled": False}})) if kind == "NetworkPolicy"
    ]


def test_trainings_of_several_nodes_are_refused_where_their_volume_is_not_shared(render, known_to):
    values = {"trainJobs": {"enabled": True}, "s3": {"enabled": True}}
    variables = variables_of(rendered(render(values)), "trainer")
    setting = {"GPT2_TRAINJOB_MAX_NODES": variables["GPT2_TRAINJOB_MAX_NODES"]}
    assert known_to("trainer", setting).trainjob_max_nodes == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"imagee": {}}, "imagee"),
        ({"image": {"registri": "r.example.com"}}, "registri"),
        ({"image": {"registry": "https://r.example.com"}}, "/image/registry"),
        ({"image": {"digests": {"gpt2-trainer": "sha256:12"}}}, "/image/digests/gpt2-trainer"),
        ({"services": {"exporter": {"resources": {"limit": {"memory": "2Gi"}}}}}, "limit"),
        ({"services": {"exporter": {"resources": {"limits": {"memory": "2 GB"}}}}}, "/services/exporter/resources"),
        ({"services": {"exporter": {"env": [{"name": "GPT2_LISTEN", "value": "x"}]}}}, "/services/exporter/env"),
        ({"settings": {"GPT2_KAFKA_TOPIC": "x"}}, "GPT2_KAFKA_TOPIC"),
        ({"settings": {"GPT2_QUEUE_LIMIT": 20}}, "/settings/GPT2_QUEUE_LIMIT"),
        ({"kafka": {"bootstrapServers": "kafka"}}, "/kafka/bootstrapServers"),
        ({"storage": {"scratch": {"trainings": {"accessMode": "ReadWriteOften"}}}}, "accessMode"),
        ({"s3": {"artifactRoot": "/data"}}, "/s3/artifactRoot"),
        ({"gpus": {"count": "one"}}, "/gpus/count"),
        (
            {"ingress": {"dashboard": {"enabled": True, "host": "a.example.com", "tlsSecret": "tls"}}},
            "/ingress/dashboard/annotations",
        ),
        ({"ingress": {"grpc": {"enabled": True, "domain": "a.example.com"}}}, "/ingress/grpc/tlsSecret"),
        (
            {"ingress": {"grpc": {"enabled": True, "domain": "a.example.com", "tlsSecret": "tls"}}},
            "ingress.controller: is empty",
        ),
        ({"trainJobs": {"enabled": True}, "gpus": {"count": 1}}, "set gpus.count to 0"),
    ],
)
def test_wrong_values_are_refused_by_their_path(render, values, message):
    result = render(values)
    assert result.returncode != 0
    assert message in result.stderr


def test_the_examples_of_the_how_to_are_accepted(render, root):
    examples = re.findall(r"^```yaml\n(.*?)^```$", (root / "docs/how-to/helm.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        assert rendered(render(yaml.safe_load(example)))


def test_the_notes_name_what_has_to_be_there(helm, chart, tmp_path):
    # Helm shows notes only where a cluster answers, so that they are made part of an object here.
    copy = shutil.copytree(chart, tmp_path / "gpt2")
    notes = (copy / "templates" / "NOTES.txt").read_text()
    (copy / "templates" / "_notes.tpl").write_text(f'{{{{ define "notes" }}}}{notes}{{{{ end }}}}')
    text = 'kind: Notes\nmetadata: {name: notes}\ntext: {{ include "notes" . | quote }}\n'
    (copy / "templates" / "notes.yaml").write_text(text)
    (tmp_path / "values.yaml").write_text(EVERYTHING)
    command = [helm, "template", "gpt2", copy, "--namespace", "gpt2", "--kube-version", VERSIONS[-1]]
    result = subprocess.run(
        [*command, "--values", "values.yaml"], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    notes = rendered(result)["Notes", "notes"]["text"]
    for text in (
        "Secret exporter-app with uri",
        "Secret mlflow with password, user",
        "Secret gpt2-tls with tls.crt, tls.key",
        "https://gpt2.example.com",
        "GPT2_TRAINER_ADDRESS=trainer.gpt2.example.com:443",
        "Kubeflow Trainer 2.2",
    ):
        assert text in notes
    assert "Secret gpt2-s3" not in notes

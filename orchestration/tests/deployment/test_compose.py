"""The compose file says nothing that the services' own code does not know, and Compose's own loader takes it."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import mlflow.cli
import pytest

from gpt2_common.settings import ServiceSettings
from gpt2_orchestration.airflow.settings import AirflowSettings
from gpt2_orchestration.calls import DEFAULT_PORTS
from gpt2_orchestration.client import ClientSettings
from gpt2_orchestration.dashboard.settings import DEFAULT_PORT, DashboardSettings

SECRETS = dict.fromkeys(("POSTGRES_PASSWORD", "MONGODB_PASSWORD", "AIRFLOW_FERNET_KEY", "AIRFLOW_SECRET_KEY"), "secret")


class Recording(dict[str, str]):
    """An environment that remembers which variables were asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("service", DEFAULT_PORTS)
def test_a_service_knows_its_variables_and_port(compose, known_to, service):
    container = compose["services"][service]
    settings = known_to(service, container["environment"])
    assert settings.database_url.endswith(f"@postgres:5432/{service}")
    assert f"CREATE DATABASE {service};" in compose["configs"]["databases"]["content"]
    assert settings.artifact_root == "file:///data/artifacts"
    assert container["ports"] == [f"127.0.0.1:{DEFAULT_PORTS[service]}:{DEFAULT_PORTS[service]}"]


def test_airflow_reads_each_of_its_variables(compose):
    container = compose["services"]["airflow"]
    environment = Recording({name: value for name, value in container["environment"].items() if "GPT2" in name})
    settings = AirflowSettings.from_environment(environment)
    addresses = ClientSettings.from_environment(environment).addresses
    assert set(environment) <= environment.asked
    assert f"CREATE DATABASE {settings.metadata.database};" in compose["configs"]["databases"]["content"]
    assert container["environment"]["PGPASSWORD"]
    assert addresses == {service: f"{service}:{port}" for service, port in DEFAULT_PORTS.items()}
    mounts = {mount.split(":")[1] for mount in container["volumes"]}
    assert str(settings.pipelines) in mounts
    assert str(settings.folder.parent) in mounts


def test_the_dashboard_reads_each_of_its_variables_and_is_published_on_loopback_alone(compose):
    container = compose["services"]["dashboard"]
    environment = Recording(container["environment"])
    settings = DashboardSettings.from_environment(environment)
    assert set(environment) <= environment.asked
    assert settings.client.addresses == {service: f"{service}:{port}" for service, port in DEFAULT_PORTS.items()}
    assert settings.kafka_topic == compose["x-environment"]["GPT2_KAFKA_TOPIC"]
    assert container["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{settings.port}"]
    assert f"localhost:{settings.port}/healthz" in container["healthcheck"]["test"][-1]
    assert importlib.util.find_spec(f"{container['command'][-1]}.__main__") is not None
    assert container["image"] == compose["services"]["airflow"]["image"]


def test_the_topics_are_those_of_the_services(compose):
    topics = re.findall(r"([\w.-]+):(\d+)", compose["services"]["topics"]["command"][0].splitlines()[0])
    name = ServiceSettings.model_fields["kafka_topic"].default
    assert dict(topics) == {name: "6", f"{name}.dlq": "1"}
    assert compose["x-environment"]["GPT2_KAFKA_TOPIC"] == name


def test_mlflow_is_of_the_registrys_version_and_knows_its_options(compose, root):
    container = compose["services"]["mlflow"]
    version = container["image"].partition(":v")[2]
    assert f"\nmlflow=={version} " in (root / "requirements/registry.txt").read_text()
    known = {option for parameter in mlflow.cli.cli.commands["server"].params for option in parameter.opts}
    assert {word.partition("=")[0] for word in container["command"][2:]} <= known


def test_images_are_pinned_memory_is_limited_and_each_server_is_watched(compose):
    for name, container in compose["services"].items():
        assert container["mem_limit"], name
        if "build" not in container and container.get("pull_policy") != "never":
            assert re.search(r":\S*\d", container["image"]), name
        if container.get("restart"):
            assert "healthcheck" in container or "build" in container, name
        for needed in container.get("depends_on", {}):
            assert needed in compose["services"], name


def test_no_secret_has_a_default_and_the_example_names_each(root):
    text = (root / "docker-compose.yml").read_text()
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    defaults = {name: value for name, value in re.findall(r"\$\{(\w+):-([^}]*)\}", text) if value}
    assert set(defaults) == {"PIPELINES"}
    example = (root / ".env.example").read_text()
    assert set(re.findall(r"^#?([A-Z0-9_]+)=", example, re.MULTILINE)) == asked
    assert not re.search(r"^[A-Z0-9_]+=.", example, re.MULTILINE)


@pytest.fixture(scope="module")
def compose_loader(tmp_path_factory):
    if not shutil.which("go"):
        pytest.skip("needs Go, to build Compose's own loader")
    binary = tmp_path_factory.mktemp("compose") / "compose_check"
    source = Path(__file__).with_name("compose_check")
    environment = {**os.environ, "CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", binary, "."], cwd=source, env=environment, check=True, timeout=800)

    def load(*files, secrets=SECRETS):
        environment = {"PATH": os.environ["PATH"], **secrets}
        return subprocess.run([binary, *files], env=environment, capture_output=True, text=True, timeout=60)

    return load


def test_composes_own_loader_takes_the_file_and_the_gpu_override(compose_loader, root):
    plain = compose_loader(root / "docker-compose.yml")
    assert plain.returncode == 0, plain.stderr
    gpu = compose_loader(root / "docker-compose.yml", root / "docker-compose.gpu.yml")
    assert gpu.returncode == 0, gpu.stderr
    trainer = json.loads(gpu.stdout)["services"]["trainer"]
    assert trainer["build"]["args"]["REQUIREMENTS"] == "trainer-gpu"
    assert trainer["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_the_s3_override_keeps_the_artifacts_of_every_service_in_the_store(compose_loader, root, known_to):
    files = (root / "docker-compose.yml", root / "docker-compose.s3.yml")
    loaded = compose_loader(*files, secrets={**SECRETS, "S3_PASSWORD": "secret"})
    assert loaded.returncode == 0, loaded.stderr
    containers = json.loads(loaded.stdout)["services"]
    for service in ("exporter", "tokenizer", "trainer", "registry"):
        own = {k: v for k, v in containers[service]["environment"].items() if k.startswith("GPT2_")}
        assert known_to(service, own).artifact_root == "s3://gpt2/artifacts"
        assert containers[service]["environment"]["AWS_ENDPOINT_URL"] == "http://s3:9000"
        assert containers[service]["depends_on"]["bucket"]["condition"] == "service_completed_successfully"
    refused = compose_loader(*files)
    assert refused.returncode != 0
    assert "S3_PASSWORD" in refused.stderr


@pytest.mark.parametrize("secret", SECRETS)
def test_a_missing_secret_is_refused_with_what_to_do(compose_loader, root, secret):
    answer = compose_loader(root / "docker-compose.yml", secrets={k: v for k, v in SECRETS.items() if k != secret})
    assert answer.returncode != 0
    assert secret in answer.stderr
    assert ".env.example" in answer.stderr

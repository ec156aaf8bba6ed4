"""The compose file says nothing that the services' own code does not know, and Compose's own loader takes it."""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from go_programs import build_go_program

from gpt2_common.settings import ServiceSettings
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.dashboard.settings import DEFAULT_PORT, DashboardSettings
from gpt2_orchestration.runners.airflow.settings import AirflowSettings
from gpt2_orchestration.stack.definitions import define_stack
from gpt2_orchestration.stack.kafka_server import HEAP_OPTIONS, SINGLE_BROKER_PROPERTIES
from gpt2_orchestration.stack.settings import DEFAULT_PORTS as STACK_PORTS
from gpt2_orchestration.stack.settings import StackFolder, StackSettings

ONE_SHOTS = {"prepare", "databases", "airflow-init", "bucket"}
AIRFLOW = ("airflow-init", "airflow-scheduler", "airflow-triggerer", "airflow-dag-processor", "airflow-webserver")


class Recording(dict[str, str]):
    """An environment that remembers which variables were asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


def ours(environment):
    return {name: value for name, value in environment.items() if name.startswith("GPT2_")}


@pytest.mark.parametrize("service", DEFAULT_PORTS)
def test_a_service_knows_its_variables_and_port(compose, known_to, service):
    container = compose["services"][service]
    variables = ours(container["environment"])
    assert variables.pop("GPT2_SECRETS_DIR") == "/run/secrets"
    settings = known_to(service, variables)
    assert settings.database_url == f"postgresql+psycopg://{service}@postgres:5432/{service}"
    assert settings.artifact_root == "file:///data/artifacts"
    assert container["ports"] == [f"127.0.0.1:{DEFAULT_PORTS[service]}:{DEFAULT_PORTS[service]}"]


def test_each_service_has_its_own_scratch_folder(compose):
    folders = [compose["services"][name]["environment"]["GPT2_SCRATCH_FOLDER"] for name in DEFAULT_PORTS]
    assert len(set(folders)) == len(folders)


def test_the_exporter_may_read_the_folder_of_files(compose, known_to):
    container = compose["services"]["exporter"]
    variables = ours(container["environment"])
    del variables["GPT2_SECRETS_DIR"]
    assert "file:///import" in known_to("exporter", variables).roots
    assert "./data:/import:ro" in container["volumes"]


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_reads_each_of_its_variables(compose, name):
    container = compose["services"][name]
    environment = Recording(ours(container["environment"]))
    settings = AirflowSettings.from_environment(environment)
    addresses = ClientSettings.from_environment(environment).addresses
    assert set(environment) <= environment.asked
    assert (settings.metadata.database, settings.metadata.user) == ("tfx", "airflow")
    assert addresses == {service: f"{service}:{port}" for service, port in DEFAULT_PORTS.items()}
    mounts = {mount.split(":")[1] for mount in container["volumes"] if isinstance(mount, str)}
    assert str(settings.pipelines) in mounts
    assert str(settings.folder.parent) in mounts
    assert container["profiles"] == ["airflow"]


def test_each_process_of_airflow_is_a_container_that_starts_again(compose):
    commands = {tuple(compose["services"][name]["command"]) for name in AIRFLOW[1:]}
    assert commands == {("airflow", name.removeprefix("airflow-")) for name in AIRFLOW[1:]}
    for name in AIRFLOW[1:]:
        assert compose["services"][name]["restart"] == "unless-stopped"


def test_the_dashboard_reads_each_of_its_variables_and_is_published_on_loopback_alone(compose):
    container = compose["services"]["dashboard"]
    environment = Recording(container["environment"])
    settings = DashboardSettings.from_environment(environment)
    assert set(environment) <= environment.asked
    assert settings.client.addresses == {service: f"{service}:{port}" for service, port in DEFAULT_PORTS.items()}
    assert settings.kafka_topic == compose["x-environment"]["GPT2_KAFKA_TOPIC"]
    assert container["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{settings.port}"]
    assert f"/dev/tcp/127.0.0.1/{settings.port}\n" in container["healthcheck"]["test"][-1]
    assert importlib.util.find_spec(f"{container['command'][-1]}.__main__") is not None


def test_the_topic_is_that_of_the_services(compose):
    assert compose["x-environment"]["GPT2_KAFKA_TOPIC"] == ServiceSettings.model_fields["kafka_topic"].default


@pytest.mark.parametrize("name", ["mlflow", "tensorboard"])
def test_a_server_is_started_as_the_embedded_stack_starts_it(compose, tmp_path, name):
    container = compose["services"][name]
    folder = StackFolder.create(tmp_path)
    stack = {item.name: item for item in define_stack(StackSettings(folder=tmp_path), folder, STACK_PORTS)}
    python, *arguments = stack[name].command
    assert python.endswith(container["command"][0])
    assert container["command"][1:3] == arguments[:2]
    assert str(STACK_PORTS[name]) in " ".join(container["command"])
    # Of the image of the package that the module is in.
    assert container["image"] == container["command"][2].partition(".")[0].replace("_", "-")


def test_the_broker_is_configured_as_the_embedded_stacks(compose):
    environment = compose["services"]["kafka"]["environment"]
    for name, value in SINGLE_BROKER_PROPERTIES.items():
        assert str(environment[f"KAFKA_{name.upper().replace('.', '_')}"]) == value
    assert environment["KAFKA_HEAP_OPTS"] == " ".join(HEAP_OPTIONS)


def test_kafka_is_reached_by_containers_and_by_this_machine_under_what_it_advertises(compose):
    environment = compose["services"]["kafka"]["environment"]
    advertised = dict(item.split("://") for item in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listens = dict(item.split("://:") for item in environment["KAFKA_LISTENERS"].split(","))
    assert advertised["INTERNAL"] == compose["x-environment"]["GPT2_KAFKA_BOOTSTRAP_SERVERS"]
    assert advertised["HOST"] == f"localhost:{STACK_PORTS['kafka']}"
    assert compose["services"]["kafka"]["ports"] == [f"127.0.0.1:{STACK_PORTS['kafka']}:{listens['HOST']}"]


def test_the_ports_are_those_of_the_embedded_stack_and_on_loopback_alone(compose):
    published = {port for container in compose["services"].values() for port in container.get("ports", ())}
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert {port.split(":")[1] for port in published} >= {str(port) for port in STACK_PORTS.values()}


def test_every_container_is_confined_limited_and_its_log_rotated(compose):
    for name, container in compose["services"].items():
        assert container["mem_limit"], name
        assert container["pids_limit"], name
        assert container["cap_drop"] == ["ALL"], name
        assert container["security_opt"] == ["no-new-privileges:true"], name
        assert container["logging"]["options"]["max-size"], name
        # Kafka's and MinIO's client write beside their programs.
        assert container.get("read_only") or name in ("kafka", "bucket"), name
        for needed in container.get("depends_on", {}):
            assert needed in compose["services"], name


def test_every_server_is_watched_and_starts_again(compose):
    for name, container in compose["services"].items():
        if name in ONE_SHOTS:
            assert container.get("restart", "no") == "no", name
            continue
        assert container["restart"] == "unless-stopped", name
        check = container["healthcheck"]
        assert check["start_period"], name
        assert "mongosh" not in str(check), name
        assert ".sh" not in str(check) or "airflow_health.sh" in str(check), name


def test_images_of_others_are_pinned_and_can_be_replaced(compose, root):
    text = (root / "docker-compose.yml").read_text()
    for name, container in compose["services"].items():
        if not container["image"].startswith("gpt2-"):
            assert re.search(r":\S*\d", container["image"]), name
            assert re.search(r"\$\{\w+_IMAGE:-" + re.escape(container["image"]), text), name


def test_every_image_of_ours_is_built_by_one_container_that_the_core_has(compose):
    built = [container["image"] for container in compose["services"].values() if "build" in container]
    assert len(built) == len(set(built))
    assert {item["image"] for item in compose["services"].values() if item["image"].startswith("gpt2-")} == set(built)


def test_the_example_names_each_variable_and_holds_no_secret(root):
    text = "".join(path.read_text() for path in sorted(root.glob("docker-compose*.yml")))
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    example = (root / ".env.example").read_text()
    assert set(re.findall(r"^#?([A-Z0-9_]+)=", example, re.MULTILINE)) == asked | {"COMPOSE_PROFILES"}


def test_no_environment_holds_a_secret(compose):
    for name, container in compose["services"].items():
        for variable in container.get("environment", {}):
            secret = re.search(r"PASSWORD|_TOKEN\b|_KEY|SECRET", variable)
            assert not secret or variable.endswith(("_FILE", "_CMD", "_DIR")), f"{name}: {variable}"


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    """The folder of secrets that prepare.sh makes, by the names of containers."""
    secrets = tmp_path_factory.mktemp("secrets")
    run_prepare(root, secrets)
    return secrets


def run_prepare(root, secrets, *arguments, text=""):
    """Runs prepare.sh where the volumes are folders, and nobody else's files can be made."""
    script = (root / "orchestration/compose/prepare.sh").read_text()
    script = script.replace("secrets=/secrets", f"secrets={secrets}").replace("/volumes/*", f"{secrets}/no-volumes")
    script = script.replace('[ "$(stat -c %u "$folder")" = 10001 ] ||', "true ||")
    script = script.replace("chown ", ": chown ") if os.getuid() else script
    command = ["bash", "-c", script, "prepare", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@pytest.mark.process
def test_secrets_are_made_once_and_differ(root, prepared):
    before = {path: path.read_bytes() for path in sorted(prepared.rglob("*")) if path.is_file()}
    run_prepare(root, prepared)
    assert before == {path: path.read_bytes() for path in sorted(prepared.rglob("*")) if path.is_file()}
    made = [value for path, value in before.items() if path.parent.name == "all"]
    assert len(made) == len(set(made)) > 8
    assert all(len(value) >= 44 for value in made)
    assert all(path.stat().st_mode & 0o377 == 0 for path in before if path.parent.name != "all")


@pytest.mark.process
def test_a_container_sees_no_password_of_another(compose, prepared):
    for name, container in compose["services"].items():
        for mount in container.get("volumes", ()):
            if isinstance(mount, dict) and mount["source"] == "secrets":
                assert (prepared / mount["volume"]["subpath"]).is_dir(), name
    everything = {path.name: path.read_text() for path in (prepared / "all").iterdir()}
    for service in DEFAULT_PORTS:
        seen = "".join(path.read_text() for path in (prepared / service).iterdir())
        known = {name for name, value in everything.items() if value in seen}
        allowed = {f"{service}_database_password", "s3_password"} | (
            {"mongodb_password"} if service == "exporter" else set()
        )
        assert known == allowed


@pytest.mark.process
def test_the_exporter_takes_mongodbs_address_from_its_secrets(prepared, monkeypatch, known_to):
    monkeypatch.setenv("GPT2_SECRETS_DIR", str(prepared / "exporter"))
    password = (prepared / "all" / "mongodb_password").read_text()
    uri = known_to("exporter", {}).mongodb_uri
    assert password in getattr(uri, "get_secret_value", lambda: uri)()


@pytest.mark.process
def test_a_secret_can_be_shown_and_set(root, tmp_path):
    assert run_prepare(root, tmp_path, "set", "mongodb_password", text="carried-over\n") == ""
    run_prepare(root, tmp_path)
    assert run_prepare(root, tmp_path, "show", "mongodb_password") == "carried-over"
    assert "gpt2:carried-over@" in (tmp_path / "exporter" / "gpt2_mongodb_uri").read_text()


@pytest.mark.process
def test_clients_get_the_token_that_was_set(root, tmp_path):
    run_prepare(root, tmp_path, "set", "airflow_token", text="token-of-airflow\n")
    run_prepare(root, tmp_path)
    assert (tmp_path / "airflow" / "gpt2_client_token").read_text() == "token-of-airflow"
    settings = ClientSettings.from_environment({"GPT2_SECRETS_DIR": str(tmp_path / "airflow")})
    assert settings.token == "token-of-airflow"
    assert not (tmp_path / "dashboard" / "gpt2_client_token").exists()


@pytest.fixture(scope="module")
def compose_loader():
    binary = build_go_program(Path(__file__).with_name("compose_check"), "compose_check")

    def load(*files):
        environment = {"PATH": os.environ["PATH"]}
        return subprocess.run([binary, *files], env=environment, capture_output=True, text=True, timeout=60)

    return load


def test_composes_own_loader_takes_the_file_and_the_gpu_override(compose_loader, root):
    plain = compose_loader(root / "docker-compose.yml")
    assert plain.returncode == 0, plain.stderr
    gpu = compose_loader(root / "docker-compose.yml", root / "docker-compose.gpu.yml")
    assert gpu.returncode == 0, gpu.stderr
    containers = json.loads(gpu.stdout)["services"]
    trainer = containers["trainer"]
    assert trainer["build"]["args"]["REQUIREMENTS"] == "trainer-gpu"
    assert trainer["environment"]["GPT2_KERAS_BACKEND"] == "jax"
    assert trainer["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert containers["tensorboard"]["image"] == trainer["image"]


def test_the_s3_override_keeps_the_artifacts_of_every_service_in_the_store(compose_loader, root, known_to):
    loaded = compose_loader(root / "docker-compose.yml", root / "docker-compose.s3.yml")
    assert loaded.returncode == 0, loaded.stderr
    containers = json.loads(loaded.stdout)["services"]
    for service in DEFAULT_PORTS:
        variables = ours(containers[service]["environment"])
        del variables["GPT2_SECRETS_DIR"]
        assert known_to(service, variables).artifact_root == "s3://gpt2/artifacts"
        assert containers[service]["environment"]["AWS_ENDPOINT_URL"] == "http://s3:9000"
        assert containers[service]["environment"]["AWS_SHARED_CREDENTIALS_FILE"] == "/run/secrets/aws_credentials"
        assert containers[service]["depends_on"]["bucket"]["condition"] == "service_completed_successfully"


def test_the_clients_override_has_every_service_know_its_callers(compose_loader, root, known_to):
    loaded = compose_loader(root / "docker-compose.yml", root / "docker-compose.clients.yml")
    assert loaded.returncode == 0, loaded.stderr
    containers = json.loads(loaded.stdout)["services"]
    for service in DEFAULT_PORTS:
        variables = ours(containers[service]["environment"])
        del variables["GPT2_SECRETS_DIR"]
        folders = {mount["target"]: mount for mount in containers[service]["volumes"]}
        assert str(known_to(service, variables).clients_file.parent) in folders
        assert folders["/run/gpt2"]["read_only"]
        assert "/data" in folders

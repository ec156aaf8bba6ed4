"""Airflow itself, with its scheduler, triggerer, web server and REST API, runs both kinds of DAG over the services."""

import base64
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from free_ports import free_port

from gpt2.registry.v1 import registry_service_pb2
from gpt2_orchestration.client.service_client import connect

from .local_servers import database_dump, holders, wait_for

ROOT = Path(__file__).parents[2]
# Each call has Airflow hash the password, which takes a quarter of a processor when it is called all the time.
_PAUSE = 2.0
PROGRAM = ROOT / ".airflow" / "bin" / "airflow"
SPECIFICATION = """
name: airflow
import_files: {uris: ["%s"]}
train_tokenizer: {vocabulary_size: 300}
encode_corpus: {validation_fraction: 0.5}
train_model:
  model: {n_layer: 1, n_head: 2, n_embd: 16, n_ctx: 16}
  config: {steps: 4, batch_size: 2, sample_prompt: "{{ beer }}"}
register_model: {model_name: airflow, label: staging}
"""


CANARIES = {
    "GPT2_CLIENT_TOKEN": "canary-of-the-services-token",
    "PGPASSWORD": "canary-of-the-metadata-password",
    "AIRFLOW__CORE__FERNET_KEY": "Y2FuYXJ5LW9mLWFpcmZsb3dzLWZlcm5ldC1rZXktMDA=",
    "AIRFLOW__WEBSERVER__SECRET_KEY": "canary-of-airflows-secret-key",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-s3-key",
}
"""A secret for each variable that takes one."""


@dataclass(frozen=True)
class Airflow:
    """A running Airflow."""

    url: str
    scheduler: subprocess.Popen
    logs: Path
    home: Path
    environment: dict[str, str]

    def call(self, path: str, content: dict | None = None, method: str = "") -> dict:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.url}/api/v1/{path}", data, method=method or None)
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"admin:admin").decode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def trigger(self, dag: str, conf: dict) -> str:
        self.call(f"dags/{dag}", {"is_paused": False}, "PATCH")
        return self.call(f"dags/{dag}/dagRuns", {"conf": conf})["dag_run_id"]

    def tasks(self, dag: str, run: str) -> dict[str, dict]:
        found = self.call(f"dags/{dag}/dagRuns/{run}/taskInstances")["task_instances"]
        return {task["task_id"]: task for task in found}

    def wait(self, dag: str, run: str) -> str:
        return wait_for(
            lambda: (state := self.call(f"dags/{dag}/dagRuns/{run}")["state"]) in ("success", "failed") and state,
            900,
            _PAUSE,
        )

    def log_of(self, dag: str) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.logs.glob(f"dag_id={dag}/**/*.log")))


@pytest.fixture(scope="module")
def metadata_url(request) -> str:
    """TFX's metadata in PostgreSQL, where that is installed, else in SQLite."""
    try:
        return request.getfixturevalue("postgresql")
    except pytest.skip.Exception:
        return ""


@pytest.fixture(scope="module")
def airflow(stack, tmp_path_factory, metadata_url, airflow_programs) -> Iterator[Airflow]:
    home = tmp_path_factory.mktemp("airflow")
    texts = stack.folder.parent / "airflow-texts"
    texts.mkdir()
    for number in range(20):
        (texts / f"{number}.txt").write_text(f"{number} bottles of {{{{ beer }}}} on the wall, " * 40)
    (home / "pipelines").mkdir()
    (home / "pipelines" / "airflow.yaml").write_text(SPECIFICATION % texts.as_uri())
    port = free_port()
    environment = {
        **os.environ,
        **CANARIES,
        **{f"GPT2_{name.upper()}_ADDRESS": address for name, address in stack.client.addresses.items()},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "orchestration" / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth",
        "AIRFLOW__WEBSERVER__WORKERS": "1",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__SCHEDULER__USAGE_DATA_COLLECTION_ENABLED": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        # A task whose processes are gone is found soon, not after five minutes.
        "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "15",
        "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "3",
        "GPT2_PIPELINES": str(home / "pipelines"),
        "GPT2_PIPELINE_ROOT": str(home / "runs"),
        "GPT2_METADATA_URL": metadata_url,
        "GPT2_RETRY_SECONDS": "1",
    }
    environment["PATH"] = f"{PROGRAM.parent}:{environment['PATH']}"
    run_airflow(environment, "db", "migrate")
    account = {"username": "admin", "password": "admin", "role": "Admin", "email": "a@example.org"}
    account |= {"firstname": "A", "lastname": "B"}
    run_airflow(environment, "users", "create", *(f"--{key}={value}" for key, value in account.items()))
    with ExitStack() as started:

        def start(*arguments: str) -> subprocess.Popen:
            log = started.enter_context((home / f"{arguments[0]}.out").open("wb"))
            command = [PROGRAM, *arguments]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            started.callback(end, process)
            return process

        scheduler = start("scheduler")
        start("triggerer", "--skip-serve-logs")
        start("webserver", "--hostname", "127.0.0.1", "--port", str(port))
        running = Airflow(f"http://127.0.0.1:{port}", scheduler, home / "logs", home, environment)
        wait_for(lambda: {"airflow", "airflow-services"} <= dag_ids(running), 600)
        yield running


def run_airflow(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [PROGRAM, *arguments], env=environment, check=True, capture_output=True, text=True, timeout=300
    )
    return done.stdout


def dag_ids(airflow: Airflow) -> set[str]:
    try:
        return {dag["dag_id"] for dag in airflow.call("dags")["dags"]}
    except OSError:
        return set()


def end(process: subprocess.Popen) -> None:
    family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except (psutil.Error, OSError):
            continue
    process.wait()


def latest_version(stack, name: str):
    with connect("registry", stack.client) as registry:
        request = registry_service_pb2.GetModelVersionRequest(model_name=name, label="staging")
        return registry.call("GetModelVersion", request).model_version


def processes_of(airflow: Airflow, task: str, run: str) -> list[psutil.Process]:
    members = psutil.Process(airflow.scheduler.pid).children(recursive=True)
    return [member for member in members if {task, run} <= set(words_of(member))]


def words_of(process: psutil.Process) -> list[str]:
    """The words of a process's command; none where it has ended meanwhile."""
    try:
        return " ".join(process.cmdline()).split()
    except psutil.NoSuchProcess:
        return []


def kill_task(airflow: Airflow, task: str, run: str) -> None:
    """Kills the processes of a task, as a worker that dies does."""
    killed = processes_of(airflow, task, run)
    assert killed
    for member in killed:
        with suppress(psutil.NoSuchProcess):
            member.kill()


@pytest.mark.exhaustive  # TFX's components run under the other runners, and a task that ends early in the other DAG
def test_a_killed_worker_s_task_is_retried_and_takes_up_the_same_job(airflow, stack):
    conf = {"steps": 3000, "model_name": "airflow-tfx", "overrides": {"train_model.config.save_every": 50}}
    run = airflow.trigger("airflow", conf)

    def training():
        assert airflow.call(f"dags/airflow/dagRuns/{run}")["state"] != "failed", airflow.log_of("airflow")
        with connect("trainer", stack.client) as trainer:
            return [job for job in trainer.jobs("") if job.run_id.startswith("airflow-") and job.progress.done > 10]

    [job] = wait_for(training, 800, _PAUSE)
    kill_task(airflow, "TrainModel", run)
    state = airflow.wait("airflow", run)
    assert state == "success", airflow.log_of("airflow")
    tasks = airflow.tasks("airflow", run)
    assert {task["state"] for task in tasks.values()} == {"success"}
    assert tasks["TrainModel"]["try_number"] == 2
    with connect("trainer", stack.client) as trainer:
        same = [other for other in trainer.jobs(job.run_id) if other.kind == "TrainModel"]
    assert [(other.job_id, other.attempt) for other in same] == [(job.job_id, 1)]
    assert latest_version(stack, "airflow-tfx").version == 1


def test_the_services_dag_waits_without_a_slot_and_registers(airflow, stack):
    run = airflow.trigger("airflow-services", {"steps": 8000, "model_name": "airflow-direct"})
    state = lambda: airflow.tasks("airflow-services", run).get("TrainModel", {}).get("state")  # noqa: E731
    wait_for(lambda: state() in ("deferred", "success", "failed"), 800, _PAUSE)
    wait_for(lambda: processes_of(airflow, "TrainModel", run) == [], 300)
    assert state() == "deferred"
    assert airflow.wait("airflow-services", run) == "success", airflow.log_of("airflow-services")
    assert latest_version(stack, "airflow-direct").version == 1


def test_the_form_refuses_what_is_no_value(airflow):
    with pytest.raises(urllib.error.HTTPError) as refused:
        airflow.trigger("airflow-services", {"steps": 0})
    assert refused.value.code == 400
    assert "steps" in refused.value.read().decode()


def test_dags_are_listed_soon(airflow, record_property):
    """The time is reported, not asserted: it depends on what else the machine does."""
    start = time.monotonic()
    answer = run_airflow(airflow.environment, "dags", "list", "--output", "json")
    record_property("airflow_dags_list_seconds", f"{time.monotonic() - start:.1f}")
    # Airflow prints its log before.
    assert {dag["dag_id"] for dag in json.loads(answer.splitlines()[-1])} == {"airflow", "airflow-services"}


def test_no_secret_is_in_what_airflow_keeps(airflow):
    """Runs after the others: what they have left is searched."""
    assert holders(["airflow-services"], airflow.home), "the search finds nothing at all"
    # Airflow writes its own configuration file, with its settings.
    kept = [found for found in holders(CANARIES.values(), airflow.home) if "/airflow.cfg: " not in found]
    assert kept == []


@pytest.mark.exhaustive  # with the run of TFX's components above
def test_no_secret_is_in_the_metadata_of_tfx(metadata_url):
    if metadata_url:
        dump = database_dump(metadata_url)
        assert "TrainModel" in dump
        assert [secret for secret in CANARIES.values() if secret in dump] == []

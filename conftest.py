"""What holds for all tests."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from fault_report import summarize
from postgresql import PostgreSql
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

pytest_plugins = ["unit_run"]
# Their assertions say what they have compared, as those of tests do.
pytest.register_assert_rewrite("brokers", "history", "trainer_support", "tests")
_LONG_RUN_SECONDS = 60
_FAULT_SUITE = "tests/faults/"
_KUBEFLOW_TRAINER = "github.com/kubeflow/trainer/v2@v2.2.0"


def pytest_configure(config: pytest.Config) -> None:
    """Prepares what every process below inherits."""
    # A shell starts what it runs in the background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A broker lives for a minute: a start takes half the processor time where Java compiles quickly rather than well.
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
    # How long an example takes says how busy the machine is.
    hypothesis.settings.register_profile("all", deadline=None)
    hypothesis.settings.register_profile("unit", deadline=None, max_examples=20)
    hypothesis.settings.load_profile("unit" if config.getoption("--unit") else "all")


class FilesAndFaultSuite(LoadFileScheduling):
    """Leaves the tests of a file on one worker, as `--dist loadfile` does, and so those of the whole fault suite.

    They share servers. Those of the fault suite start with a run of all kinds of job, which others are held against.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _FAULT_SUITE if nodeid.startswith(_FAULT_SUITE) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesAndFaultSuite | None:
    """Chooses that scheduler where files are to stay together."""
    return FilesAndFaultSuite(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Adds what the files took, and the report of the fault suite, which workers of pytest-xdist could not print."""
    # Each phase of a test has a report; those of set-up and teardown that passed have no outcome.
    outcomes = ("", "passed", "failed", "error", "skipped")
    reports = [report for outcome in outcomes for report in terminalreporter.getreports(outcome)]
    seconds: dict[str, Counter[str]] = {"setup": Counter(), "call": Counter(), "teardown": Counter()}
    for report in reports:
        if report.when in seconds:
            seconds[report.when][report.nodeid.partition("::")[0]] += report.duration
    total = sum(seconds.values(), Counter())
    if total.total() > _LONG_RUN_SECONDS:
        terminalreporter.section("the files that took longest: seconds of all phases, set-up, calls, teardown")
        for file, taken in total.most_common(25):
            phases = "".join(f"{phase[file]:8.1f}" for phase in seconds.values())
            terminalreporter.write_line(f"{taken:8.1f}{phases}  {file}")
    if lines := summarize(reports):
        terminalreporter.section("what was promised, and what was seen")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def kubeflow_schemas() -> Mapping[str, Any]:
    """Kubeflow Trainer's own schemas by kind, as JSON schemas that refuse what they do not know."""
    if not shutil.which("go"):
        pytest.skip("needs Go, to fetch Kubeflow Trainer's schemas")
    command = ["go", "mod", "download", "-json", _KUBEFLOW_TRAINER]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd="/")
    folder = Path(json.loads(answer.stdout)["Dir"]) / "manifests" / "base" / "crds"
    found = (yaml.load(path.read_text(), yaml.CSafeLoader) for path in folder.glob("trainer.kubeflow.org_*.yaml"))
    return {
        definition["spec"]["names"]["kind"]: _closed(version["schema"]["openAPIV3Schema"])
        for definition in found
        for version in definition["spec"]["versions"]
        if version["name"] == "v1alpha1"
    }


@pytest.fixture(scope="session")
def airflow_programs() -> Path:
    """The folder of Airflow's programs, which `make airflow` installs: once, whichever worker comes first."""
    makefile = Path(__file__).with_name("Makefile")
    with makefile.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--quiet", "airflow"], cwd=makefile.parent, check=True, timeout=900)
    return makefile.parent / ".airflow" / "bin"


@pytest.fixture(scope="session")
def quick_trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a service whose trainings are not what is tested.

    Each of a hundred small trainings compiles for ten seconds and more with TensorFlow; what JAX has compiled, all that
    follow find in a folder, also those of other workers. The trainer's own tests train with both.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    return {"GPT2_KERAS_BACKEND": "jax", "GPT2_COMPILE_CACHE_FOLDER": str(shared / "compiled")}


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A PostgreSQL server's address."""
    server = PostgreSql().start()
    yield server.url
    server.remove()


def _closed(schema: Any) -> Any:
    """A schema of Kubernetes as JSON schema. A cluster drops unknown fields without a word; here they are wrong."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), Mapping) and schema.get("type") == "object":
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string") is True:
        closed["type"] = ["integer", "string"]
    return closed

"""What holds for all tests."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

from gpt2_orchestration.stack.ports import choose_ports

_KUBEFLOW_TRAINER = "github.com/kubeflow/trainer/v2@v2.2.0"


def pytest_configure() -> None:
    """Lets Ctrl-C reach the processes that tests start.

    A shell starts what it runs in the background with that signal ignored, which every process below would inherit.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says how busy the machine is.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


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
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server's address."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder, user = tmp_path_factory.mktemp("postgresql"), None
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root, and the folders above pytest's are closed to other users.
        folder, user = Path(f"/tmp/gpt2-postgresql-{os.getpid()}"), "postgres"
        folder.mkdir()
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
    data, port = folder / "data", choose_ports({"postgresql": 0})["postgresql"]
    create = [str(programs / "initdb"), "-D", str(data), "-U", "gpt2", "--auth=trust", "--no-sync"]
    subprocess.run(create, check=True, capture_output=True, cwd="/", user=user)
    options = ("-h", "127.0.0.1", "-p", str(port), "-k", str(folder))
    server = subprocess.Popen([str(programs / "postgres"), "-D", str(data), *options], cwd="/", user=user)
    ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    deadline = time.monotonic() + 60
    while subprocess.run(ready, check=False).returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield f"postgresql://gpt2@127.0.0.1:{port}/postgres"
    server.send_signal(signal.SIGINT)
    server.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


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

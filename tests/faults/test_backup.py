"""A backup by the commands of docs/operations.md, taken in the middle of a run; then everything is lost, and restored.

Kafka's events are lost as well, as the stand-in keeps them in memory.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sql
from postgresql import PROGRAMS

from gpt2.jobs.v1 import job_pb2
from gpt2_common.artifacts import ArtifactStore
from gpt2_orchestration.stack.definitions import define_stack
from gpt2_orchestration.stack.ports import choose_ports
from gpt2_orchestration.stack.settings import DEFAULT_PORTS, StackFolder, StackSettings
from tests.end_to_end.documentation import blocks

from .runs import SMALL, start, wait_for_job
from .services import FaultStack, KillableProcess, KillableService

pytestmark = pytest.mark.process
SERVICES = ("exporter", "tokenizer")
RUN = "restored"
KINDS = {"ImportFiles": "corpus", "TrainTokenizer": "tokenizer", "EncodeCorpus": "dataset"}


def commands(mark: str) -> str:
    """A block of the page, for the services that run here."""
    [found] = blocks("docs/operations.md", mark)
    everyone = "in exporter tokenizer trainer registry;"
    assert everyone in found or "artifacts" in mark
    return found.replace(everyone, f"in {' '.join(SERVICES)};")


class Site:
    """A folder with services and their databases, and somebody who works in it."""

    def __init__(self, folder: Path, database: str, server: str) -> None:
        self.folder = folder
        self.database = database
        self._server = server
        self._ports = choose_ports(dict.fromkeys(DEFAULT_PORTS, 0))
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
        (folder / "text").mkdir()
        for number in range(40):
            (folder / "text" / f"{number}.txt").write_text(
                f"{number} bottles of beer on the wall, {number} bottles. " * 30
            )

    def run(self, commands: str) -> None:
        programs = f"{PROGRAMS}:{os.environ['PATH']}" if self._server else os.environ["PATH"]
        environment = {**os.environ, "PATH": programs, "POSTGRESQL": self._server}
        command = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"

    def start(self) -> FaultStack:
        root = self.folder / ".gpt2"
        environment = {"GPT2_ALLOWED_ROOTS": str(self.folder), "GPT2_RECONCILE_SECONDS": "1", "GPT2_LEASE_SECONDS": "3"}
        folder = StackFolder.create(root)
        settings = StackSettings(folder=root, environment=environment)
        defined = {one.name: one for one in define_stack(settings, folder, self._ports)}
        kafka = KillableProcess(defined["kafka"], folder, {})
        kafka.address = f"127.0.0.1:{self._ports['kafka']}"
        further = {"GPT2_KAFKA_BOOTSTRAP_SERVERS": kafka.address}
        services = {
            name: KillableService(defined[name], folder, {**further, **self._url(name)}, None) for name in SERVICES
        }
        stack = FaultStack(folder, {"kafka": kafka}, services, None, self.folder)
        self._started = [process.start() for process in (kafka, *services.values())]
        for process in self._started:
            process.wait_until_ready()
        return stack

    def kill(self) -> None:
        for process in self._started:
            process.kill()
        self._started = []

    def _url(self, name: str) -> Mapping[str, str]:
        return {"GPT2_DATABASE_URL": f"{self._server}/{name}"} if self._server else {}


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request, tmp_path) -> Iterator[Site]:
    server = request.getfixturevalue("postgresql").removesuffix("/postgres") if request.param == "postgresql" else ""
    made = Site(tmp_path, request.param, server)
    if server:
        on_databases(server, "CREATE DATABASE {}")
    yield made
    made.kill()
    if server:
        on_databases(server, "DROP DATABASE {} WITH (FORCE)")


def on_databases(server: str, statement: str) -> None:
    """Runs a statement for the database of each service."""
    engine = sql.create_engine(
        f"{server.replace('postgresql', 'postgresql+psycopg')}/postgres", isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        for name in SERVICES:
            connection.execute(sql.text(statement.format(name)))
    engine.dispose()


def test_a_run_continues_from_a_backup_taken_in_its_middle(site):
    stack = site.start()
    start(stack, RUN, SMALL)
    wait_for_job(stack, RUN, "TrainTokenizer")
    site.run(commands(f"backup {site.database}"))
    assert not [
        job for job in stack.jobs(RUN) if job.kind == "EncodeCorpus" and job.state == job_pb2.Job.STATE_SUCCEEDED
    ]
    site.run(commands("backup artifacts"))
    wait_for_job(stack, RUN, "EncodeCorpus", job_pb2.Job.STATE_SUCCEEDED)
    site.kill()
    shutil.rmtree(site.folder / ".gpt2")
    if site.database == "postgresql":
        site.run("".join(f'dropdb --maintenance-db="$POSTGRESQL/postgres" {name}\n' for name in SERVICES))

    site.run(commands("restore artifacts"))
    site.run(commands(f"restore {site.database}"))
    stack = site.start()
    wait_for_job(stack, RUN, "EncodeCorpus", job_pb2.Job.STATE_SUCCEEDED)
    jobs = {job.kind: job for job in stack.jobs(RUN)}
    assert jobs.keys() == KINDS.keys()
    assert len(stack.jobs(RUN)) == len(KINDS)
    root = stack.folder.artifacts.as_uri()
    artifacts = ArtifactStore(root, [root], site.folder / "scratch")
    for kind, artifact_kind in KINDS.items():
        assert jobs[kind].state == job_pb2.Job.STATE_SUCCEEDED
        artifacts.open("uri", jobs[kind].outputs[0].uri, artifact_kind, verify=True)

"""The stack as processes that a test kills and starts: backends and services alike."""

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError, connect
from gpt2_orchestration.stack.definitions import SERVICES, ProcessDefinition, define_stack
from gpt2_orchestration.stack.ports import choose_ports
from gpt2_orchestration.stack.settings import DEFAULT_PORTS, StackFolder, StackSettings

BACKENDS = ("mongodb", "kafka", "mlflow")
# Below those that the system gives to clients, which could take a service's while it is dead. Two suites on one machine
# need different ones, as do the workers of one.
FIRST_PORT = int(os.environ.get("GPT2_FAULTS_PORT", "21050"))
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = {name: FIRST_PORT + WORKER * len(DEFAULT_PORTS) + number for number, name in enumerate(DEFAULT_PORTS)}
KINDS = {
    "exporter": ("ImportFiles", "ExportCorpus"),
    "tokenizer": ("TrainTokenizer", "EncodeCorpus", "ImportTokenizer"),
    "trainer": ("TrainModel", "ExportModel", "ImportCheckpoint", "EvaluateModel"),
    "registry": ("RegisterModel",),
}


class KillableProcess:
    """One process of the stack.

    Args:
        definition: How the stack runs it.
        folder: Where its log goes.
        further: Variables of its environment besides those of the definition.
    """

    def __init__(self, definition: ProcessDefinition, folder: StackFolder, further: Mapping[str, str]) -> None:
        self.name = definition.name
        self.address = definition.address
        self.log = folder.log(definition.name)
        self._definition = definition
        self._environment = {**definition.environment, **further}

    def start(self) -> "KillableProcess":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._definition.command, env=self._environment, stdout=log, stderr=log)
        return self

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 300
        while not self._definition.is_ready(self.address):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"{self.name} does not answer"
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class KillableService(KillableProcess):
    """One service.

    Args:
        token: Bearer token that its calls must carry. Others as KillableProcess.
    """

    def __init__(
        self, definition: ProcessDefinition, folder: StackFolder, further: Mapping[str, str], token: str | None
    ) -> None:
        super().__init__(definition, folder, further)
        self._client = ClientSettings(addresses={self.name: self.address}, token=token)
        self._database = folder.root / "data" / f"{definition.name}.db"

    def connect(self):
        return connect(self.name, self._client)

    def call(self, method: str, request):
        with self.connect() as client:
            return client.call(method, request)

    def stored_job(self, job_id: str) -> job_pb2.Job:
        """A job as the database has it, while the service is dead."""
        with closing(sqlite3.connect(self._database)) as database:
            [[job]] = database.execute("SELECT job FROM jobs WHERE job_id = ?", (job_id,))
        return job_pb2.Job.FromString(job)

    def jobs(self, run_id: str) -> list:
        """The jobs of a run; none while the service is away."""
        try:
            with self.connect() as client:
                return client.jobs(run_id)
        except ServiceError:
            assert self.process.poll() in (None, -9), self.log.read_text()[-3000:]
            return []


class FaultStack:
    """All of it.

    Args:
        folder: Where it keeps its files.
        backends: Its servers, by name.
        services: The services, by name.
        token: Bearer token of the services.
        temporary: Folder that the services are given for temporary files.
    """

    def __init__(
        self,
        folder: StackFolder,
        backends: dict[str, KillableProcess],
        services: dict[str, KillableService],
        token: str | None,
        temporary: Path,
    ) -> None:
        self.temporary = temporary
        self.folder = folder
        self.backends = backends
        self.services = services
        self.client = ClientSettings(
            addresses={name: service.address for name, service in services.items()}, token=token
        )

    @property
    def addresses(self) -> dict[str, str]:
        """Where the backends answer."""
        return {name: backend.address for name, backend in self.backends.items()}

    def owner(self, kind: str) -> KillableService:
        return next(self.services[name] for name, kinds in KINDS.items() if kind in kinds)

    def jobs(self, run_id: str) -> list:
        return [job for service in self.services.values() for job in service.jobs(run_id)]


@contextmanager
def fault_stack(root: Path, environment: Mapping[str, str], token: str | None = None) -> Iterator[FaultStack]:
    """Apache Kafka, MongoDB's stand-in, MLflow and the services, as long as the context lasts.

    Args:
        root: Folder for all that they keep; files in it can be read by the services.
        environment: Further variables of the services.
        token: Bearer token of the services.
    """
    further = {**environment, **({"GPT2_AUTH_TOKEN": token} if token else {})}
    settings = StackSettings(
        folder=root / ".gpt2", ports=PORTS, kafka=True, environment={"GPT2_ALLOWED_ROOTS": str(root), **further}
    )
    folder = StackFolder.create(settings.folder)
    definitions = {
        definition.name: definition for definition in define_stack(settings, folder, choose_ports(settings.ports))
    }
    temporary = root / "temporary"
    temporary.mkdir()
    own = {"GPT2_KAFKA_BOOTSTRAP_SERVERS": definitions["kafka"].address, "TMPDIR": str(temporary)}
    backends = {name: KillableProcess(definitions[name], folder, {}) for name in BACKENDS}
    services = {name: KillableService(definitions[name], folder, own, token) for name in SERVICES}
    started: list[KillableProcess] = []
    try:
        for group in (backends, services):
            started += [process.start() for process in group.values()]
            for process in group.values():
                process.wait_until_ready()
        yield FaultStack(folder, backends, services, token, temporary)
    finally:
        for process in reversed(started):
            process.kill()

"""The four services as processes that a test kills and starts, over backends that a supervisor keeps."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpt2_orchestration.client import ClientSettings, ServiceError, connect
from gpt2_orchestration.stack.definitions import SERVICES, ProcessDefinition, define_stack
from gpt2_orchestration.stack.running import supervised
from gpt2_orchestration.stack.settings import DEFAULT_PORTS, StackFolder, StackSettings

BACKENDS = ("mongodb", "kafka", "mlflow")
# Below those that the system gives to clients, which could take a service's while it is dead. Two suites on one machine
# need different ones.
FIRST_PORT = int(os.environ.get("GPT2_FAULTS_PORT", "21050"))
PORTS = {name: FIRST_PORT + number for number, name in enumerate(DEFAULT_PORTS)}
KINDS = {
    "exporter": ("ImportFiles", "ExportCorpus"),
    "tokenizer": ("TrainTokenizer", "EncodeCorpus", "ImportTokenizer"),
    "trainer": ("TrainModel", "ExportModel", "ImportCheckpoint", "EvaluateModel"),
    "registry": ("RegisterModel",),
}


class KillableService:
    """One service.

    Args:
        definition: How the stack runs it.
        kafka: Address of the broker.
        folder: Where its log goes.
    """

    def __init__(self, definition: ProcessDefinition, kafka: str, folder: StackFolder) -> None:
        self.name = definition.name
        self.log = folder.log(definition.name)
        self._command = definition.command
        self._environment = {**definition.environment, "GPT2_KAFKA_BOOTSTRAP_SERVERS": kafka}
        self._address = definition.address
        self._client = ClientSettings(addresses={self.name: self._address})

    def start(self) -> "KillableService":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        return self

    def wait_until_ready(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            request = health_pb2.HealthCheckRequest()
            health_pb2_grpc.HealthStub(channel).Check(request, timeout=120, wait_for_ready=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def call(self, method: str, request):
        with connect(self.name, self._client) as client:
            return client.call(method, request)

    def jobs(self, run_id: str) -> list:
        """The jobs of a run; none while the service is away."""
        try:
            with connect(self.name, self._client) as client:
                return client.jobs(run_id)
        except ServiceError:
            assert self.process.poll() in (None, -9), self.log.read_text()[-3000:]
            return []


class FaultStack:
    """All of it.

    Args:
        folder: Where it keeps its files.
        addresses: Of the backends.
        services: The services, by name.
    """

    def __init__(self, folder: StackFolder, addresses, services: dict[str, KillableService]) -> None:
        self.folder = folder
        self.addresses = addresses
        self.services = services

    def owner(self, kind: str) -> KillableService:
        return next(self.services[name] for name, kinds in KINDS.items() if kind in kinds)

    def jobs(self, run_id: str) -> list:
        return [job for service in self.services.values() for job in service.jobs(run_id)]


@contextmanager
def fault_stack(root: Path, **environment: str) -> Iterator[FaultStack]:
    """Apache Kafka, MongoDB's stand-in, MLflow and the services, as long as the context lasts."""
    settings = StackSettings(
        folder=root / ".gpt2", ports=PORTS, kafka=True, environment={"GPT2_ALLOWED_ROOTS": str(root), **environment}
    )
    folder = StackFolder.create(settings.folder)
    definitions = {definition.name: definition for definition in define_stack(settings, folder)}
    with supervised([definitions[name] for name in BACKENDS], folder) as supervisor:
        addresses = supervisor.wait_ready()
        services = {name: KillableService(definitions[name], addresses["kafka"], folder) for name in SERVICES}
        for service in services.values():
            service.start()
        try:
            for service in services.values():
                service.wait_until_ready()
            yield FaultStack(folder, addresses, services)
        finally:
            for service in services.values():
                service.kill()

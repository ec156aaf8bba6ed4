import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from free_ports import free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpt2.exporter.v1 import exporter_service_pb2 as exporter
from gpt2.exporter.v1 import exporter_service_pb2_grpc
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2, jobs_service_pb2_grpc

HERE = Path(__file__).parent
# Generous, as it is waited for events: a busy machine takes ten times as long as a quiet one.
SECONDS = 120


class FakeService:
    """The fake service as a process, and its clients."""

    program = "fake_service.py"

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.settings = settings
        self.log = folder / "service.log"
        self.metadata: list[tuple[str, str]] = []
        self.credentials: grpc.ChannelCredentials | None = None

    def start(self) -> "FakeService":
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "GPT2_LISTEN": f"127.0.0.1:{self.port}",
            "GPT2_ARTIFACT_ROOT": str(self.folder / "artifacts"),
            "GPT2_DATABASE_URL": f"sqlite:///{self.folder / 'jobs.db'}",
            "GPT2_KAFKA_BOOTSTRAP_SERVERS": "",
            "GPT2_CANCEL_GRACE_SECONDS": "2",
            "GPT2_INSTANCE_ID": "test",
            **self.settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / self.program)], env=environment, stderr=log, cwd=self.folder
            )
        # Channels to one address share a connection: this one would begin with that of the process killed before.
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.credentials is None:
            self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options)
        else:
            self.channel = grpc.secure_channel(f"localhost:{self.port}", self.credentials, options)
        self.jobs = jobs_service_pb2_grpc.JobsServiceStub(self.channel)
        self.exporter = exporter_service_pb2_grpc.ExporterServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        return self

    def wait_until_ready(self) -> "FakeService":
        self.health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS, wait_for_ready=True)
        return self

    def submit(self, *uris: str, **options: object) -> job_pb2.Job:
        request = exporter.ImportFilesRequest(uris=uris, job=job_pb2.JobOptions(**options))
        return self.exporter.ImportFiles(request, timeout=SECONDS, metadata=self.metadata).job

    def get(self, job_id: str) -> job_pb2.Job:
        return self.jobs.GetJob(
            jobs_service_pb2.GetJobRequest(job_id=job_id), timeout=SECONDS, metadata=self.metadata
        ).job

    def watch(self, job_id: str, **arguments: int) -> list[job_pb2.Job]:
        request = jobs_service_pb2.WatchJobRequest(job_id=job_id, **arguments)
        return [answer.job for answer in self.jobs.WatchJob(request, timeout=SECONDS, metadata=self.metadata)]

    def run(self, *uris: str, **options: object) -> job_pb2.Job:
        return self.watch(self.submit(*uris, **options).job_id)[-1]

    def cancel(self, job_id: str, reason: str = "") -> job_pb2.Job:
        request = jobs_service_pb2.CancelJobRequest(job_id=job_id, reason=reason)
        return self.jobs.CancelJob(request, timeout=SECONDS, metadata=self.metadata).job

    def wait_for_state(self, job_id: str, state: int) -> job_pb2.Job:
        deadline = time.monotonic() + SECONDS
        while (job := self.get(job_id)).state != state:
            assert time.monotonic() < deadline, f"job is {job}"
            time.sleep(0.05)
        return job

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        self.channel.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.channel.close()
        return self.process.wait(SECONDS)


@pytest.fixture
def service(tmp_path):
    service = FakeService(tmp_path).start().wait_until_ready()
    yield service
    service.kill()


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory):
    """A service for the tests of a file that mind no other jobs and leave it as it was."""
    service = FakeService(tmp_path_factory.mktemp("shared-service")).start().wait_until_ready()
    yield service
    service.kill()


@pytest.fixture
def make_service(tmp_path):
    made = []

    def make(**settings: str) -> FakeService:
        made.append(FakeService(tmp_path, **settings))
        return made[-1]

    yield make
    for service in made:
        if service.process.poll() is None:
            service.kill()

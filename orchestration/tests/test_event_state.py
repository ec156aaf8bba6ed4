"""How commands report a service that receives no events, and runs that wait for one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest
from starlette.requests import Request

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.client.services import event_problem, open_services
from gpt2_orchestration.dashboard.routes.health import HealthRoutes
from gpt2_orchestration.dashboard.settings import DashboardSettings

GPT2 = Path(sys.executable).with_name("gpt2")
NAMES = ("exporter", "tokenizer", "trainer", "registry")


class ServiceWithoutEvents(jobs_service_pb2_grpc.JobsServiceServicer):
    """A service whose consumer has no partitions."""

    def DescribeService(self, request, context):
        events = jobs_service_pb2.EventState(
            problem="no events have been received for 90 s: its group has assigned 0 of 6 partitions",
            seconds_since_healthy=90,
            waiting_runs=2,
            oldest_waiting_seconds=300,
        )
        return jobs_service_pb2.DescribeServiceResponse(
            service="exporter", version=version("gpt2-orchestration"), events=events
        )

    def ContinueRun(self, request, context):
        return jobs_service_pb2.ContinueRunResponse(published=[job_pb2.Job(job_id=f"{request.run_id}/export-corpus")])


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    server = grpc.server(ThreadPoolExecutor(4))
    jobs_service_pb2_grpc.add_JobsServiceServicer_to_server(ServiceWithoutEvents(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield {f"GPT2_{name.upper()}_ADDRESS": f"127.0.0.1:{port}" for name in NAMES}
    server.stop(None)


def gpt2(*arguments: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [GPT2, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.process
def test_doctor_reports_a_service_that_receives_no_events(tmp_path, addresses):
    result = gpt2("doctor", "--json", folder=tmp_path, environment=addresses)
    assert result.returncode == 1
    [exporter] = [item for item in json.loads(result.stdout) if item["what"] == "exporter"]
    assert not exporter["ok"]
    assert "assigned 0 of 6 partitions" in exporter["fix"]
    assert "2 runs wait for the next stage, the oldest for 300 s" in exporter["fix"]


@pytest.mark.process
def test_the_dashboard_reports_it_too(addresses):
    clients = ClientSettings(addresses={name: addresses[f"GPT2_{name.upper()}_ADDRESS"] for name in NAMES})
    settings = DashboardSettings(
        client=clients, kafka_bootstrap_servers="127.0.0.1:1", tensorboard_uri="http://127.0.0.1:1"
    )
    with open_services(clients) as services:
        answer = json.loads(HealthRoutes(services, settings).show_all(Request({"type": "http"})).body)
    [exporter] = [item for item in answer["services"] if item["name"] == "exporter"]
    assert not exporter["ok"]
    assert "assigned 0 of 6 partitions" in exporter["message"]


@pytest.mark.process
def test_continuing_a_run_republishes_its_event(tmp_path, addresses):
    result = gpt2("runs", "continue", "r1", folder=tmp_path, environment=addresses)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.splitlines()) == {"republished the event of r1/export-corpus"}


def test_no_problem_is_reported_while_events_arrive():
    assert event_problem(jobs_service_pb2.EventState(outbox_events=3, seconds_since_healthy=0.4)) == ""

"""The newest runs of many: whole, in order, and without reading all jobs. The services only list jobs here."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_orchestration.client import ClientSettings, ServiceError
from gpt2_orchestration.run_list import newest_runs
from gpt2_orchestration.services import Services, open_services

STAGES = (("exporter", 1), ("tokenizer", 2), ("trainer", 2), ("registry", 1))
RUNS = 1000


class ManyJobs(jobs_service_pb2_grpc.JobsServiceServicer):
    """Lists the jobs of many runs, newest first, and counts its pages."""

    def __init__(self, service: str, stages: int) -> None:
        self.pages = 0
        self._jobs = [
            self._job(service, run, stage) for run in reversed(range(RUNS)) for stage in reversed(range(stages))
        ]

    def _job(self, service: str, run: int, stage: int) -> job_pb2.Job:
        job = job_pb2.Job(job_id=f"run-{run}/{service}-{stage}", run_id=f"run-{run}", service=service)
        job.state = job_pb2.Job.STATE_SUCCEEDED
        job.create_time.FromSeconds(1_000_000 + 100 * run + 10 * list(dict(STAGES)).index(service) + stage)
        return job

    def ListJobs(self, request, context):
        self.pages += 1
        start = int(request.page_token or 0)
        end = start + request.page_size
        token = str(end) if end < len(self._jobs) else ""
        return jobs_service_pb2.ListJobsResponse(jobs=self._jobs[start:end], next_page_token=token)


@contextmanager
def serving(servicer: ManyJobs) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    jobs_service_pb2_grpc.add_JobsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def many() -> Iterator[tuple[Services, dict[str, ManyJobs]]]:
    servicers = {service: ManyJobs(service, stages) for service, stages in STAGES}
    with ExitStack() as opened:
        addresses = {name: opened.enter_context(serving(servicer)) for name, servicer in servicers.items()}
        yield opened.enter_context(open_services(ClientSettings(addresses=addresses))), servicers


def test_the_newest_are_whole_and_the_rest_is_not_read(many):
    services, servicers = many
    found = newest_runs(services, 50)
    assert [run.run_id for run in found.runs] == [f"run-{number}" for number in range(999, 949, -1)]
    assert {len(run.jobs) for run in found.runs} == {6}
    assert found.more
    assert {servicer.pages for servicer in servicers.values()} == {1}


@pytest.mark.parametrize("limit", [None, RUNS, 5000])
def test_all_are_found(many, limit):
    services, _ = many
    found = newest_runs(services, limit)
    assert len(found.runs) == RUNS
    assert {len(run.jobs) for run in found.runs} == {6}
    assert not found.more


def test_the_command_lists_all_runs_or_the_newest_whole(many, tmp_path):
    services, _ = many

    def list_runs(*options: str, **away: str) -> subprocess.CompletedProcess:
        addresses = {f"GPT2_{name.upper()}_ADDRESS": client.address for name, client in services.clients.items()}
        command = [Path(sys.executable).with_name("gpt2"), "runs", "list", "--json", *options]
        return subprocess.run(command, cwd=tmp_path, env={**addresses, **away}, capture_output=True, text=True)

    everything = json.loads(list_runs().stdout)
    assert [run["run_id"] for run in everything] == [f"run-{number}" for number in reversed(range(RUNS))]
    assert {len(run["jobs"]) for run in everything} == {6}
    assert json.loads(list_runs("--limit", "7").stdout) == everything[:7]
    # Without the jobs of one service, runs would be told wrong.
    partly = list_runs(GPT2_TRAINER_ADDRESS="127.0.0.1:1")
    assert (partly.returncode, partly.stdout) == (1, "")
    assert "the trainer at 127.0.0.1:1 does not answer" in partly.stderr


def test_jobs_are_read_over_their_pages_up_to_a_limit(many):
    services, servicers = many
    client = services.clients["trainer"]
    assert [len(client.jobs("", limit=limit)) for limit in (None, 1, 501, 1234)] == [2 * RUNS, 1, 501, 1234]
    assert len({job.job_id for job in client.jobs("")}) == 2 * RUNS
    servicers["trainer"].pages = 0
    client.jobs("", limit=20)
    assert servicers["trainer"].pages == 1


def test_a_service_that_is_away_is_named_and_none_is_an_error(many):
    services, _ = many
    away = {"trainer": "127.0.0.1:1"}
    addresses = {name: away.get(name, client.address) for name, client in services.clients.items()}
    with open_services(ClientSettings(addresses=addresses)) as some:
        found = newest_runs(some, 10)
        assert list(found.errors) == ["trainer"]
        assert {len(run.jobs) for run in found.runs} == {4}
    nowhere = ClientSettings(addresses=dict.fromkeys(addresses, "127.0.0.1:1"))
    with open_services(nowhere) as none, pytest.raises(ServiceError, match="does not answer"):
        newest_runs(none, 10)

"""Lists of runs compared with a sort of all jobs, over real job stores, and how much they read."""

import asyncio
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import grpc
import grpc.aio
import pytest
import sqlalchemy as sql
from earlier_rows import earlier_row

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2_grpc
from gpt2_common.authentication import open_authenticator
from gpt2_common.database import open_database
from gpt2_common.interceptor import CallInterceptor
from gpt2_common.jobs.manager import JobManager
from gpt2_common.jobs.rows import JOBS
from gpt2_common.jobs.run_rows import JOB_SUMMARIES, MAX_JOBS_OF_RUN, RUNS
from gpt2_common.jobs.run_upgrade import complete_runs
from gpt2_common.jobs.service import JobsServicer
from gpt2_common.jobs.store import JobStore
from gpt2_common.lease import LeaseHolder
from gpt2_common.metrics import ServiceMetrics
from gpt2_common.settings import ServiceSettings
from gpt2_orchestration.client.run_pagination import MergedRuns, find_runs, newest_runs
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError
from gpt2_orchestration.client.services import Services, open_services
from gpt2_orchestration.dashboard.serialization import describe_run

pytestmark = pytest.mark.process

SERVICES = ("exporter", "tokenizer", "trainer", "registry")
STAGES = (("exporter", 1), ("tokenizer", 2), ("trainer", 2), ("registry", 1))
RUNS_OF_SIX = 1000


class CountingServicer(JobsServicer):
    """Counts list calls and listed runs; other calls do not work."""

    def __init__(self, jobs: JobManager) -> None:
        self._jobs = jobs
        self.calls = 0
        self.listed = 0

    async def ListRuns(self, request, context):
        answer = await super().ListRuns(request, context)
        self.calls += 1
        self.listed += len(answer.runs)
        return answer

    async def ListJobs(self, request, context):
        self.calls += 1
        return await super().ListJobs(request, context)


class History:
    """Stores of the four services, in one database as PostgreSQL would be, and the services over it."""

    def __init__(self, engine: sql.Engine) -> None:
        self.engine = engine
        self.servicers: dict[str, CountingServicer] = {}
        self.addresses: dict[str, str] = {}
        self.jobs: Sequence[job_pb2.Job] = ()
        self._numbers = count(1)

    def fill(self, jobs: Sequence[job_pb2.Job]) -> None:
        """Replaces all jobs, with rows as the previous version wrote them."""
        self.jobs = jobs
        rows = [{"position": next(self._numbers), **earlier_row(job)} for job in jobs]
        with self.engine.begin() as connection:
            for table in (JOBS, RUNS, JOB_SUMMARIES):
                connection.execute(table.delete())
            if rows:
                connection.execute(JOBS.insert(), rows)
        for service in SERVICES:
            complete_runs(self.engine, service)

    async def serve(self, started: Callable[[], None], stop: asyncio.Event) -> None:
        server, interceptor = {}, CallInterceptor(ServiceMetrics(), open_authenticator(ServiceSettings()))
        for name in SERVICES:
            store = JobStore(self.engine, name, 10, LeaseHolder.this_process(30.0))
            manager = JobManager(store, (), ServiceSettings(), lambda: None, None, None)
            self.servicers[name] = CountingServicer(manager)
            server[name] = grpc.aio.server(interceptors=[interceptor])
            jobs_service_pb2_grpc.add_JobsServiceServicer_to_server(self.servicers[name], server[name])
            self.addresses[name] = f"127.0.0.1:{server[name].add_insecure_port('127.0.0.1:0')}"
            await server[name].start()
        started()
        await stop.wait()
        for one in server.values():
            await one.stop(None)


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> Iterator[History]:
    with open_database(f"sqlite:///{tmp_path_factory.mktemp('history') / 'jobs.db'}") as engine:
        made = History(engine)
        started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(made.serve(started.set, stop),))
        thread.start()
        assert started.wait(30)
        yield made
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture(scope="module")
def services(history) -> Iterator[Services]:
    with open_services(ClientSettings(addresses=history.addresses)) as opened:
        yield opened


@pytest.fixture
def many(history) -> None:
    if len(history.jobs) != 6 * RUNS_OF_SIX:
        history.fill([job for number in range(RUNS_OF_SIX) for job in six_jobs(number)])


def six_jobs(number: int) -> Iterator[job_pb2.Job]:
    for place, (service, stages) in enumerate(STAGES):
        for stage in range(stages):
            yield a_job(service, f"run-{number}", f"{service}-{stage}", 1_000_000 + 100 * number + 10 * place + stage)


def a_job(service: str, run_id: str, name: str, created: int, state: int = job_pb2.Job.STATE_SUCCEEDED) -> job_pb2.Job:
    job = job_pb2.Job(job_id=f"{run_id}/{name}", run_id=run_id, service=service, kind="K", state=state, revision=1)
    job.create_time.FromSeconds(created)
    return job


def reference(jobs: Sequence[job_pb2.Job]) -> list[tuple[str, set[str]]]:
    """Runs by their first job in any service, newest first, with all of their jobs."""
    runs: dict[str, list[job_pb2.Job]] = {}
    for job in jobs:
        runs.setdefault(job.run_id, []).append(job)
    start = {run_id: min(job.create_time.ToNanoseconds() for job in found) for run_id, found in runs.items()}
    order = sorted(runs, key=lambda run_id: (start[run_id], run_id), reverse=True)
    return [(run_id, {job.job_id for job in runs[run_id]}) for run_id in order]


def random_history(seed: int) -> list[job_pb2.Job]:
    """Runs of some services, whose parts start at equal times, in any order, and far apart."""
    pick = random.Random(seed)
    jobs = []
    span = pick.choice((3, 50, 10_000))
    for number in range(pick.randrange(60)):
        start = pick.randrange(span)
        for service in pick.sample(SERVICES, pick.randint(1, 4)):
            for again in range(pick.choice((1, 1, 1, 3))):
                later = pick.choice((0, 1, pick.randrange(span), 100 * span))
                jobs.append(a_job(service, f"run-{number}", f"{service}-{again}", 1_000_000 + start + later))
    pick.shuffle(jobs)
    return jobs


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(5, 15))]
)
def test_order_and_pages_are_those_of_all_jobs_sorted_whatever_the_history(history, services, monkeypatch, seed):
    # Forgotten soon, what was read is asked for again.
    monkeypatch.setattr("gpt2_orchestration.client.run_pagination._MAX_KNOWN_RUNS", 20)
    jobs = random_history(seed)
    history.fill(jobs)
    expected = reference(jobs)
    for page in (1, 7, 500):
        found = [(run.run_id, {job.job_id for job in run.jobs}) for run, _ in MergedRuns(services, page=page)]
        assert found == expected, page
    paged, token = [], ""
    while True:
        page = newest_runs(services, 1 + seed % 9, token)
        paged += [(run.run_id, {job.job_id for job in run.jobs}) for run in page.runs]
        token = page.next_token
        if not token:
            break
    assert paged == expected
    assert [run.run_id for run in find_runs(services, ["run-3", "run-8", "none"]).runs] == [
        run_id for run_id, _ in expected if run_id in ("run-3", "run-8")
    ]


def test_the_newest_runs_are_complete_and_little_more_is_read(history, services, many):
    before = {name: (servicer.calls, servicer.listed) for name, servicer in history.servicers.items()}
    found = newest_runs(services, 50)
    assert [run.run_id for run in found.runs] == [f"run-{number}" for number in range(999, 949, -1)]
    assert {len(run.jobs) for run in found.runs} == {6}
    assert found.next_token
    for name, servicer in history.servicers.items():
        assert servicer.calls - before[name][0] <= 2
        assert servicer.listed - before[name][1] <= 102


def test_the_command_lists_the_newest_runs_or_all(history, many, tmp_path):
    def list_runs(*options: str, **away: str) -> subprocess.CompletedProcess:
        addresses = {f"GPT2_{name.upper()}_ADDRESS": address for name, address in history.addresses.items()}
        command = [Path(sys.executable).with_name("gpt2"), "runs", "list", *options]
        return subprocess.run(command, cwd=tmp_path, env={**addresses, **away}, capture_output=True, text=True)

    everything = json.loads(list_runs("--json", "--all").stdout)
    assert [run["run_id"] for run in everything] == [f"run-{number}" for number in reversed(range(RUNS_OF_SIX))]
    assert {len(run["jobs"]) for run in everything} == {6}
    assert json.loads(list_runs("--json").stdout) == everything[:20]
    assert json.loads(list_runs("--json", "--limit", "7").stdout) == everything[:7]
    assert json.loads(list_runs("--json", "--limit", str(1 << 70)).stdout) == everything
    lines = list_runs("--all").stdout.splitlines()
    # Without a plan nobody here knows whether more was to follow.
    assert [line.split() for line in lines[1:]] == [
        [run["run_id"], run["jobs"][-1]["kind"], run["state"], "6"] for run in everything
    ]
    # Without the jobs of one service, states of runs would be wrong.
    partly = list_runs("--json", GPT2_TRAINER_ADDRESS="127.0.0.1:1")
    assert (partly.returncode, partly.stdout) == (1, "")
    assert "the trainer at 127.0.0.1:1 does not answer" in partly.stderr
    # One that is away may have all of the runs.
    history.fill([])
    assert list_runs("--json").stdout == "[]\n"
    none = list_runs("--json", GPT2_TRAINER_ADDRESS="127.0.0.1:1")
    assert (none.returncode, "the trainer at 127.0.0.1:1 does not answer" in none.stderr) == (1, True)
    both = list_runs("--all", "--limit", "3")
    assert both.returncode == 2
    assert "--limit" in both.stderr


def test_jobs_are_read_over_their_pages_up_to_a_limit(history, services, many):
    client = services.clients["trainer"]
    assert [len(client.jobs("", limit=limit)) for limit in (None, 1, 501, 1234)] == [2000, 1, 501, 1234]
    assert len({job.job_id for job in client.jobs("")}) == 2000
    before = history.servicers["trainer"].calls
    client.jobs("", limit=20)
    assert history.servicers["trainer"].calls == before + 1


def test_a_run_of_very_many_jobs_is_listed_with_the_newest_and_their_number(history, services):
    history.fill([a_job("trainer", "sweep", f"job-{number}", 1000 + number) for number in range(3000)])
    [run] = newest_runs(services, 5).runs
    assert [job.job_id for job in run.jobs] == [f"sweep/job-{number}" for number in range(3000 - MAX_JOBS_OF_RUN, 3000)]
    assert run.omitted_jobs == 3000 - MAX_JOBS_OF_RUN
    # It stands in the list where its first job was created, on the dashboard as well.
    assert (run.create_time.seconds, describe_run(run)["create_time"]) == (1000, "1970-01-01T00:16:40Z")


def test_an_unavailable_service_is_reported_and_no_service_is_an_error(history, many):
    def opened(away: Mapping[str, str]):
        return open_services(ClientSettings(addresses={**history.addresses, **away}))

    # One that only has later parts, and the one that runs start in.
    for name, jobs in (("trainer", 4), ("exporter", 5)):
        with opened({name: "127.0.0.1:1"}) as some:
            found = newest_runs(some, 10)
            assert list(found.errors) == [name]
            assert [run.run_id for run in found.runs] == [f"run-{number}" for number in range(999, 989, -1)]
            assert {len(run.jobs) for run in found.runs} == {jobs}
    with opened(dict.fromkeys(SERVICES, "127.0.0.1:1")) as none, pytest.raises(ServiceError, match="does not answer"):
        newest_runs(none, 10)


@contextmanager
def refused(field: str) -> Iterator[None]:
    with pytest.raises(ServiceError, match=field) as error:
        yield
    assert error.value.code == grpc.StatusCode.INVALID_ARGUMENT


def test_invalid_tokens_and_too_large_pages_are_rejected(services):
    client = services.clients["trainer"]
    for token in ("x", "12", "-1:run", "1:", "1:a\0b", "99999999999999999999:run"):
        with refused("page_token"):
            client.runs_page((), 10, token)
    with refused("page_size"):
        client.runs_page((), 1001, "")
    with refused("run_ids"):
        client.runs_of([str(number) for number in range(1001)])
    with refused("page_token"):
        newest_runs(services, 10, "nonsense")

"""Two replicas of a service on one PostgreSQL: no job runs twice, and either answers for all of them."""

import time

import psutil
import pytest

from gpt2.jobs.v1 import job_pb2

from .conftest import FakeService

pytestmark = pytest.mark.process

Job = job_pb2.Job


@pytest.fixture
def replicas(postgresql, tmp_path):
    settings = {"GPT2_DATABASE_URL": postgresql, "GPT2_LEASE_SECONDS": "3"}
    made = [FakeService(tmp_path, **settings).start() for _ in range(2)]
    for replica in made:
        replica.wait_until_ready()
    yield made
    for replica in made:
        replica.kill()


def test_each_job_runs_once_and_either_replica_answers_for_it(replicas):
    jobs = [replicas[number % 2].submit("succeed", job_id=f"once-{number}/a").job_id for number in range(12)]
    for number, job_id in enumerate(jobs):
        ended = replicas[(number + 1) % 2].watch(job_id)[-1]
        assert (ended.state, ended.attempt) == (Job.STATE_SUCCEEDED, 1)


def test_a_replica_cancels_a_job_that_another_runs(replicas, tmp_path):
    job = replicas[0].submit("wait", str(tmp_path / "pid"), job_id="far/a")
    replicas[0].wait_for_state(job.job_id, Job.STATE_RUNNING)
    for replica in replicas:
        replica.cancel(job.job_id)
    assert replicas[1].watch(job.job_id)[-1].state == Job.STATE_CANCELLED


def test_the_jobs_of_a_killed_replica_are_resumed_by_the_other(replicas, tmp_path):
    flag = tmp_path / "go"
    jobs = [replicas[0].submit("finish_when", str(flag), job_id=f"killed-{number}/a").job_id for number in range(4)]
    for job_id in jobs:
        replicas[1].wait_for_state(job_id, Job.STATE_RUNNING)
    replicas[0].kill()
    flag.touch()
    assert {replicas[1].watch(job_id)[-1].state for job_id in jobs} == {Job.STATE_SUCCEEDED}
    replicas[0].start().wait_until_ready()


def test_a_frozen_replica_loses_its_jobs_and_their_processes(replicas, tmp_path):
    pids = [tmp_path / f"pid-{number}" for number in range(4)]
    jobs = [replicas[0].submit("wait", str(pid), job_id=f"{pid.name}/a").job_id for pid in pids]
    # Each is RUNNING before its process has begun with the work.
    wait_until(lambda: all(pid.exists() and pid.read_text() for pid in pids))
    stopped = psutil.Process(replicas[0].process.pid)
    children = stopped.children()
    assert children
    stopped.suspend()
    try:
        # They end by themselves: their service, which is frozen, cannot end them.
        wait_until(lambda: all(ended(child) for child in children))
        lost = {int(pid.read_text()) for pid in pids} & {child.pid for child in children}
        assert lost
        # The other replica has as many places as this one had, and its own jobs make way.
        for job_id, pid in zip(jobs, pids, strict=True):
            if int(pid.read_text()) not in lost:
                replicas[1].cancel(job_id)
        wait_until(lambda: not {int(pid.read_text()) for pid in pids} & lost)
        own = {child.pid for child in psutil.Process(replicas[1].process.pid).children()}
        assert len([pid for pid in pids if int(pid.read_text()) in own]) == len(lost)
    finally:
        stopped.resume()


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)

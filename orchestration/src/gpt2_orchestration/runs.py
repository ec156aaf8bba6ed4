"""Runs, whoever drives them: shown, followed, cancelled, continued. `run_list.py` lists them.

They are read from the services, whose stores are the truth; the event log tells how it came about, and only as far back
as Kafka keeps it. A test holds the two against each other.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.calls import DEFAULT_PORTS
from gpt2_orchestration.client import ClientSettings, JobFailed, ServiceError, connect
from gpt2_orchestration.job_states import UNFINISHED_STATES, state_name

_NEXT_STAGE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run, now."""

    run_id: str
    jobs: Sequence[job_pb2.Job]
    """Its jobs in all services, oldest first."""

    @property
    def state(self) -> str:
        """Running, waiting for its next stage, succeeded, failed or cancelled."""
        if any(job.state in UNFINISHED_STATES for job in self.jobs):
            return "running"
        last = self.jobs[-1]
        if last.state == job_pb2.Job.STATE_SUCCEEDED and last.plan.stages:
            return "waiting"
        return state_name(last.state)

    @property
    def to_come(self) -> Sequence[str]:
        """Start calls that are still to come."""
        return [stage.start for stage in self.jobs[-1].plan.stages]


def group_by_run(jobs: Iterable[job_pb2.Job]) -> list[Run]:
    """Puts jobs of all services together to runs, newest first."""
    by_run: dict[str, list[job_pb2.Job]] = {}
    for job in jobs:
        by_run.setdefault(job.run_id, []).append(job)
    runs = [Run(run_id=run_id, jobs=sorted(jobs, key=_age)) for run_id, jobs in by_run.items()]
    return sorted(runs, key=lambda run: _age(run.jobs[0]), reverse=True)


def find_jobs(settings: ClientSettings, run_id: str) -> list[job_pb2.Job]:
    """The jobs of a run in all services, oldest first; none where no service knows of it. Raises ServiceError."""
    return sorted(_jobs_of(settings, run_id), key=_age)


def show_run(settings: ClientSettings, run_id: str) -> Run:
    """One run. Raises ServiceError, also when no service knows of it."""
    jobs = find_jobs(settings, run_id)
    if not jobs:
        raise ServiceError(f"no service has a job of run {run_id}: `gpt2 runs list` shows the runs")
    return Run(run_id=run_id, jobs=jobs)


def follow_run(settings: ClientSettings, run_id: str, on_change: Callable[[Run], None]) -> Run:
    """Follows a run to its end: the job at work by its stream, and the others as they come.

    Args:
        settings: Where the services are.
        run_id: Which run.
        on_change: Hears of each change.

    Returns:
        The run, which has succeeded.

    Raises:
        ServiceError: It failed or was cancelled, no service knows of it, or one was away for too long.
    """
    while True:
        run = show_run(settings, run_id)
        on_change(run)
        working = next((job for job in run.jobs if job.state in UNFINISHED_STATES), None)
        if working is not None:
            _follow_job(settings, run, working, on_change)
        elif run.state == "waiting":
            time.sleep(_NEXT_STAGE_SECONDS)
        elif run.state == "succeeded":
            return run
        else:
            raise JobFailed(run.jobs[-1])


def _follow_job(settings: ClientSettings, run: Run, job: job_pb2.Job, on_change: Callable[[Run], None]) -> None:
    def show(now: job_pb2.Job) -> None:
        on_change(Run(run_id=run.run_id, jobs=[now if other.job_id == now.job_id else other for other in run.jobs]))

    with connect(job.service, settings) as client:
        try:
            client.follow(job, show)
        except JobFailed:
            return


def cancel_run(settings: ClientSettings, run_id: str, reason: str) -> list[job_pb2.Job]:
    """Tells every service to stop a run. Returns the jobs that were told. Raises ServiceError."""
    told: list[job_pb2.Job] = []
    for service in DEFAULT_PORTS:
        with connect(service, settings) as client:
            told += client.cancel_run(run_id, reason)
    return told


def continue_run(settings: ClientSettings, run_id: str) -> list[job_pb2.Job]:
    """Tells every service to take a run up again. Returns the jobs that go on. Raises ServiceError."""
    queued: list[job_pb2.Job] = []
    for service in DEFAULT_PORTS:
        with connect(service, settings) as client:
            queued += client.continue_run(run_id)
    return queued


def _jobs_of(settings: ClientSettings, run_id: str) -> Iterator[job_pb2.Job]:
    for service in DEFAULT_PORTS:
        with connect(service, settings) as client:
            yield from client.jobs(run_id)


def _age(job: job_pb2.Job) -> int:
    return job.create_time.ToNanoseconds()

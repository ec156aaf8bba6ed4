"""Runs: shown, followed, cancelled, continued. `run_pagination.py` lists them.

They are read from the services, whose job stores are authoritative. The event log has their history, as far back as
Kafka retains it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.jobs import UNFINISHED_STATES, state_name
from gpt2_orchestration.client.service_client import ClientSettings, JobFailed, ServiceError, connect

_NEXT_STAGE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run, now."""

    run_id: str
    jobs: Sequence[job_pb2.Job]
    """Its jobs in all services, oldest first. Lists have summaries of them (`RunSummary` of the API)."""
    omitted_jobs: int = 0
    """Number of older jobs that a list omits."""
    omitted_from: Timestamp | None = None
    """Creation time of the first omitted job."""

    @property
    def create_time(self) -> Timestamp:
        """Creation time of its first job."""
        return self.jobs[0].create_time if self.omitted_from is None else self.omitted_from

    @property
    def state(self) -> str:
        """`running`, `waiting` (for its next stage), `succeeded`, `failed` or `cancelled`."""
        if any(job.state in UNFINISHED_STATES for job in self.jobs):
            return "running"
        last = self.jobs[-1]
        if last.state == job_pb2.Job.STATE_SUCCEEDED and last.plan.stages:
            return "waiting"
        return state_name(last.state)

    @property
    def known_state(self) -> str:
        """The state; without a plan, success is reported of the last stage only, as later ones are unknown."""
        planned = any(job.plan.stages for job in self.jobs)
        return self.state if planned or self.state != "succeeded" else f"{self.jobs[-1].kind} succeeded"

    @property
    def remaining_stages(self) -> Sequence[str]:
        """Start calls of the remaining stages."""
        return [stage.start for stage in self.jobs[-1].plan.stages]


def group_by_run(jobs: Iterable[job_pb2.Job]) -> list[Run]:
    """Groups jobs of all services by run, newest first."""
    by_run: dict[str, list[job_pb2.Job]] = {}
    for job in jobs:
        by_run.setdefault(job.run_id, []).append(job)
    runs = [Run(run_id=run_id, jobs=sorted(jobs, key=creation_time)) for run_id, jobs in by_run.items()]
    return sorted(runs, key=lambda run: creation_time(run.jobs[0]), reverse=True)


def find_jobs(settings: ClientSettings, run_id: str) -> list[job_pb2.Job]:
    """The jobs of a run in all services, oldest first; empty for an unknown run. Raises ServiceError."""
    return sorted(_jobs_of(settings, run_id), key=creation_time)


def show_run(settings: ClientSettings, run_id: str) -> Run:
    """One run. Raises ServiceError, also for an unknown run."""
    jobs = find_jobs(settings, run_id)
    if not jobs:
        raise ServiceError(f"no service has a job of run {run_id}: `gpt2 runs list` shows the runs")
    return Run(run_id=run_id, jobs=jobs)


def follow_run(settings: ClientSettings, run_id: str, on_change: Callable[[Run], None]) -> Run:
    """Follows a run to its end.

    Args:
        settings: Where the services are.
        run_id: Which run.
        on_change: Called with the run after each change.

    Returns:
        The run, which has succeeded.

    Raises:
        ServiceError: It failed or was cancelled, is unknown, or a service was unavailable for too long.
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
    """Requests cancellation of a run in every service. Returns the affected jobs. Raises ServiceError."""
    cancelled: list[job_pb2.Job] = []
    for service in DEFAULT_PORTS:
        with connect(service, settings) as client:
            cancelled += client.cancel_run(run_id, reason)
    return cancelled


def continue_run(settings: ClientSettings, run_id: str) -> jobs_service_pb2.ContinueRunResponse:
    """Resumes a run in every service. Returns the requeued and republished jobs. Raises ServiceError."""
    answers = jobs_service_pb2.ContinueRunResponse()
    for service in DEFAULT_PORTS:
        with connect(service, settings) as client:
            answers.MergeFrom(client.continue_run(run_id))
    return answers


def _jobs_of(settings: ClientSettings, run_id: str) -> Iterator[job_pb2.Job]:
    for service in DEFAULT_PORTS:
        with connect(service, settings) as client:
            yield from client.jobs(run_id, whole=True)


def creation_time(job: job_pb2.Job) -> int:
    """Creation time of a job, in nanoseconds since the Unix epoch."""
    return job.create_time.ToNanoseconds()

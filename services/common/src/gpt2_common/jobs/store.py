"""The job store: what can happen to a job, each as one transaction that several replicas can attempt at once.

How a job comes to be is in `creation.py`.
"""

from collections.abc import Callable, Sequence

import sqlalchemy as sql
from google.rpc import status_pb2

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import clock, reading
from gpt2_common.errors import FailedPrecondition, JobCancelled, NotFound
from gpt2_common.failpoints import failpoint
from gpt2_common.jobs.rows import JOBS, StoredJob, select_job, update_job
from gpt2_common.replica import Replica
from gpt2_common.status import status_of

State = job_pb2.Job.State
FINAL = frozenset({job_pb2.Job.STATE_SUCCEEDED, job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED})
REPEATABLE = frozenset({job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED})

_LARGEST_PAGE_BYTES = 2 << 20
"""Callers take messages of 4 MiB, and a job fits into an event of one."""

_MAX_WARNINGS = 20
"""With their greatest length they leave room in an event for the job's outputs."""

Change = Callable[[job_pb2.Job], None]


class JobStore:
    """Jobs of one service in a SQL database.

    Args:
        engine: Where the tables are.
        service: Name of the service.
        queue_limit: Jobs that may wait at once.
        replica: Which process of the service this is. What it runs, no other may change but to cancel it.
        lease_seconds: How long a job stays its own without another word of it.
    """

    def __init__(
        self, engine: sql.Engine, service: str, queue_limit: int, replica: Replica, lease_seconds: float
    ) -> None:
        self.engine = engine
        self.service = service
        self.replica = str(replica)
        self.lease_seconds = lease_seconds
        self.queue_limit = queue_limit

    def get(self, job_id: str) -> StoredJob:
        """Returns a job with its request. Raises NotFound."""
        with reading(self.engine) as connection:
            return self._select(connection, job_id)

    def page(
        self, run_id: str = "", states: Sequence[int] = (), limit: int = 100, before: int | None = None
    ) -> tuple[list[job_pb2.Job], int | None]:
        """Lists jobs, newest first: as many as fit into one answer, where they are large.

        Args:
            run_id: Only jobs of this run, unless empty.
            states: Only jobs in one of these states, unless empty.
            limit: Most jobs to return.
            before: Position that the page begins after; None for the first page.

        Returns:
            The jobs, and the position that the next page begins after, or None.
        """
        query = sql.select(JOBS.c.position, JOBS.c.job).where(JOBS.c.service == self.service)
        if run_id:
            query = query.where(JOBS.c.run_id == run_id)
        if states:
            query = query.where(JOBS.c.state.in_(states))
        if before is not None:
            query = query.where(JOBS.c.position < before)
        jobs: list[job_pb2.Job] = []
        room = _LARGEST_PAGE_BYTES
        position = None
        with reading(self.engine) as connection:
            for row in connection.execute(query.order_by(JOBS.c.position.desc()).limit(limit + 1)):
                room -= len(row.job)
                if len(jobs) == limit or (jobs and room < 0):
                    return jobs, position
                jobs.append(job_pb2.Job.FromString(row.job))
                position = row.position
        return jobs, None

    def queued(self) -> list[job_pb2.Job]:
        """Jobs that wait, oldest first."""
        query = (
            sql.select(JOBS.c.job)
            .where(JOBS.c.service == self.service, JOBS.c.state == job_pb2.Job.STATE_QUEUED)
            .order_by(JOBS.c.position)
        )
        with reading(self.engine) as connection:
            return [job_pb2.Job.FromString(row.job) for row in connection.execute(query)]

    def begin(self, job_id: str) -> job_pb2.Job:
        """QUEUED to RUNNING, as another attempt, by this replica. Raises FailedPrecondition when it does not wait."""

        def apply(job: job_pb2.Job) -> None:
            _require(job, job_pb2.Job.STATE_QUEUED)
            job.state = job_pb2.Job.STATE_RUNNING
            job.attempt += 1
            job.start_time.GetCurrentTime()

        return self.change(job_id, apply, owner=self.replica)

    def queue_again(self, job_id: str) -> job_pb2.Job:
        """FAILED or CANCELLED to QUEUED, with nothing counted against it; any other is returned as it is."""
        return self.change(job_id, _queue_again, deaths=None, mark=None)

    def progress(self, job_id: str, progress: job_pb2.Progress) -> job_pb2.Job:
        """Notes how far a running job is. No event is published."""
        return self._change_own(job_id, lambda job: job.progress.CopyFrom(progress))

    def warn(self, job_id: str, texts: Sequence[str]) -> job_pb2.Job:
        """Adds warnings to a running job: each once, and 20 at most. No event is published."""

        def apply(job: job_pb2.Job) -> None:
            new = [text for text in dict.fromkeys(texts) if text not in job.warnings]
            job.warnings.extend(new[: max(0, _MAX_WARNINGS - len(job.warnings))])

        return self._change_own(job_id, apply)

    def succeed(self, job_id: str, outputs: Sequence[artifact_pb2.Artifact]) -> job_pb2.Job:
        """RUNNING to SUCCEEDED."""

        def apply(job: job_pb2.Job) -> None:
            _end(job, job_pb2.Job.STATE_SUCCEEDED)
            job.outputs.extend(outputs)

        return self._change_own(job_id, apply)

    def fail(self, job_id: str, error: status_pb2.Status) -> job_pb2.Job:
        """RUNNING to FAILED; to CANCELLED when a cancel was asked for, which then is why it ended."""
        return self._change_own(job_id, lambda job: end_badly(job, error))

    def suspend(self, job_id: str) -> job_pb2.Job:
        """RUNNING back to QUEUED, as its service stops; to CANCELLED when a cancel was asked for."""
        return self._change_own(job_id, put_back)

    def request_cancel(self, job_id: str, reason: str) -> job_pb2.Job:
        """Notes that a job is to stop; one that waits is CANCELLED at once.

        Raises:
            FailedPrecondition: The job has already ended otherwise.
        """

        def apply(job: job_pb2.Job) -> None:
            if job.state == job_pb2.Job.STATE_CANCELLED:
                return
            if job.state in FINAL:
                raise FailedPrecondition(f"job {job_id} has already ended: {State.Name(job.state)}", job_id=job_id)
            job.cancel_requested = True
            job.error.CopyFrom(_cancelled_because(reason))
            if job.state == job_pb2.Job.STATE_QUEUED:
                _end(job, job_pb2.Job.STATE_CANCELLED)

        return self.change(job_id, apply)

    def change(self, job_id: str, apply: Change, *, of_owner: str | None = None, **columns: object) -> job_pb2.Job:
        """Changes a job, and adds an event to the outbox when its state changed, in one transaction.

        Args:
            job_id: Which job.
            apply: Changes the message in place; called again when another writer came between.
            of_owner: Refuse, by FailedPrecondition, unless this replica runs it.
            columns: Values for columns of the services' own; `owner` renews the lease.
        """
        while True:
            with self.engine.begin() as connection:
                found = self._select(connection, job_id)
                job = job_pb2.Job()
                job.CopyFrom(found.job)
                if of_owner is not None and (found.owner != of_owner or job.state != job_pb2.Job.STATE_RUNNING):
                    raise FailedPrecondition(f"job {job_id} is no longer this replica's", job_id=job_id)
                apply(job)
                if job == found.job:
                    return job
                lease = {"leased_until": clock(connection) + self.lease_seconds} if "owner" in columns else {}
                written = update_job(connection, found.job, job, **columns, **lease)
            if written:
                if job.state != found.job.state:
                    failpoint("after-job-commit")
                return job

    def _change_own(self, job_id: str, apply: Change) -> job_pb2.Job:
        return self.change(job_id, apply, of_owner=self.replica)

    def _select(self, connection: sql.Connection, job_id: str) -> StoredJob:
        found = select_job(connection, self.service, job_id)
        if found is None:
            raise NotFound(f"the {self.service} has no job {job_id}: ListJobs shows what it has", job_id=job_id)
        return found


def end_badly(job: job_pb2.Job, error: status_pb2.Status) -> None:
    """Ends a job FAILED; CANCELLED when a cancel was asked for."""
    _end(job, job_pb2.Job.STATE_CANCELLED if job.cancel_requested else job_pb2.Job.STATE_FAILED)
    if not job.cancel_requested:
        job.error.CopyFrom(error)


def end_cancelled(job: job_pb2.Job, reason: str) -> None:
    """Ends a job CANCELLED, by a caller who gave a reason, or none."""
    _end(job, job_pb2.Job.STATE_CANCELLED)
    job.error.CopyFrom(_cancelled_because(reason))


def put_back(job: job_pb2.Job) -> None:
    """Lets a job that was at work wait again; ends it CANCELLED when a cancel was asked for."""
    if job.cancel_requested:
        _end(job, job_pb2.Job.STATE_CANCELLED)
    else:
        job.state = job_pb2.Job.STATE_QUEUED


def _queue_again(job: job_pb2.Job) -> None:
    if job.state not in REPEATABLE:
        return
    job.state = job_pb2.Job.STATE_QUEUED
    job.cancel_requested = False
    job.attempt = 0
    job.ClearField("error")
    job.ClearField("end_time")


def _end(job: job_pb2.Job, state: "job_pb2.Job.State.ValueType") -> None:
    job.state = state
    job.end_time.GetCurrentTime()
    if state == job_pb2.Job.STATE_SUCCEEDED:
        job.ClearField("error")


def _cancelled_because(reason: str) -> status_pb2.Status:
    why = f": {reason}" if reason else ""
    return status_of(JobCancelled(f"cancelled by a caller{why}"))


def _require(job: job_pb2.Job, *states: "job_pb2.Job.State.ValueType") -> None:
    if job.state not in states:
        raise FailedPrecondition(f"job {job.job_id} is {State.Name(job.state)}", job_id=job.job_id)

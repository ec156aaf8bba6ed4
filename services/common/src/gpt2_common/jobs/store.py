"""The job store: each change of a job is one transaction, which several replicas can attempt at once.

Jobs are created in `creation.py`.
"""

from collections.abc import Callable, Sequence

import sqlalchemy as sql

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_common.database import reading
from gpt2_common.errors import FailedPrecondition, JobCancelled, NotFound
from gpt2_common.failpoints import failpoint
from gpt2_common.jobs.cancelled_runs import Cancellation
from gpt2_common.jobs.outcome import Cancelled, Outcome, Succeeded, apply_outcome
from gpt2_common.jobs.plans import strip_plan
from gpt2_common.jobs.rows import JOBS, StoredJob, newest_positions, select_job, select_whole, update_job, whole_job
from gpt2_common.jobs.run_rows import RunPlace, list_runs
from gpt2_common.lease import LeaseHolder
from gpt2_common.status import status_of

State = job_pb2.Job.State
FINAL = frozenset({job_pb2.Job.STATE_SUCCEEDED, job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED})
REPEATABLE = frozenset({job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED})

_MAX_PAGE_BYTES = 2 << 20
"""Callers take messages of 4 MiB, and a job fits into an event of one."""

_FETCH_ROWS = 50
"""Rows of a page that are read at once: they can be large, and a few of them a full page."""

_MAX_WARNINGS = 20
"""With their greatest length they leave room in an event for the job's outputs."""

Change = Callable[[job_pb2.Job], None]
FindDigest = Callable[[artifact_pb2.Artifact], str]


class JobStore:
    """Jobs of one service in a SQL database.

    Args:
        engine: Where the tables are.
        service: Name of the service.
        queue_limit: Jobs that may be queued at once.
        holder: This replica. Other replicas may do nothing to the jobs that it runs but cancel them.
        find_digest: Finds the digest of a job's input when the job succeeds; empty where it cannot. Default: always.
    """

    def __init__(
        self,
        engine: sql.Engine,
        service: str,
        queue_limit: int,
        holder: LeaseHolder,
        find_digest: FindDigest = lambda _: "",
    ) -> None:
        self.engine = engine
        self.service = service
        self.holder = holder
        self.queue_limit = queue_limit
        self._find_digest = find_digest

    def get(self, job_id: str) -> StoredJob:
        """Returns a job with its request. Raises NotFound."""
        with reading(self.engine) as connection:
            return self._select(connection, job_id)

    def list_jobs(
        self,
        run_id: str = "",
        states: Sequence[int] = (),
        limit: int = 100,
        before: int | None = None,
        whole: bool = False,
    ) -> tuple[list[job_pb2.Job], int | None]:
        """Lists jobs, newest first: as many as fit into one answer, where they are large.

        Args:
            run_id: Only jobs of this run, unless empty.
            states: Only jobs in one of these states, unless empty.
            limit: Maximum number of jobs to return.
            before: Position that the page begins after; None for the first page.
            whole: With all of their plans.

        Returns:
            The jobs, and the position that the next page begins after, or None.
        """
        query = select_whole(JOBS.c.position) if whole else sql.select(JOBS.c.position, JOBS.c.job)
        query = query.order_by(JOBS.c.position.desc())
        jobs: list[job_pb2.Job] = []
        room = _MAX_PAGE_BYTES
        with reading(self.engine) as connection:
            positions = newest_positions(connection, self.service, run_id, states, before, limit + 1)
            for start in range(0, limit, _FETCH_ROWS):
                some = positions[start : min(start + _FETCH_ROWS, limit)]
                for row in connection.execute(query.where(JOBS.c.position.in_(some))):
                    # Rows of a version before have the whole plan in the job.
                    job = whole_job(row) if whole else strip_plan(job_pb2.Job.FromString(row.job))
                    room -= job.ByteSize()
                    if jobs and room < 0:
                        return jobs, positions[len(jobs) - 1]
                    jobs.append(job)
        return jobs, positions[limit - 1] if len(positions) > limit else None

    def list_runs(
        self, run_ids: Sequence[str] = (), limit: int = 100, after: RunPlace | None = None
    ) -> tuple[list[jobs_service_pb2.RunSummary], RunPlace | None]:
        """Lists what runs have here, newest first; see `list_runs`."""
        return list_runs(self.engine, self.service, run_ids, limit, after)

    def list_queued(self) -> list[job_pb2.Job]:
        """Queued jobs, oldest first, without the bulk of their plans."""
        query = (
            sql.select(JOBS.c.job)
            .where(JOBS.c.service == self.service, JOBS.c.state == job_pb2.Job.STATE_QUEUED)
            .order_by(JOBS.c.position)
        )
        with reading(self.engine) as connection:
            return [job_pb2.Job.FromString(row.job) for row in connection.execute(query)]

    def begin(self, job_id: str) -> job_pb2.Job:
        """QUEUED to RUNNING, as another attempt, by this replica. Raises FailedPrecondition when it is not queued."""

        def apply(job: job_pb2.Job) -> None:
            _require(job, job_pb2.Job.STATE_QUEUED)
            job.state = job_pb2.Job.STATE_RUNNING
            job.attempt += 1
            job.start_time.GetCurrentTime()

        return self.change(job_id, apply, take_lease=True)

    def retry(self, job_id: str) -> job_pb2.Job:
        """FAILED or CANCELLED to QUEUED, with attempts and crashes reset; any other is returned unchanged."""
        return self.change(job_id, _retry, crashes=None, progress_at_crash=None)

    def progress(self, job_id: str, progress: job_pb2.Progress) -> job_pb2.Job:
        """Stores the progress of a running job. No event is published."""
        return self._change_own(job_id, lambda job: job.progress.CopyFrom(progress))

    def warn(self, job_id: str, texts: Sequence[str]) -> job_pb2.Job:
        """Adds warnings to a running job: each once, at most 20. No event is published."""

        def apply(job: job_pb2.Job) -> None:
            new = [text for text in dict.fromkeys(texts) if text not in job.warnings]
            job.warnings.extend(new[: max(0, _MAX_WARNINGS - len(job.warnings))])

        return self._change_own(job_id, apply)

    def finish(self, job_id: str, outcome: Outcome) -> job_pb2.Job:
        """RUNNING to what the outcome of this replica's attempt means; see `apply_outcome`."""
        inputs = self.get(job_id).job.inputs if isinstance(outcome, Succeeded) else []
        digests = {item.uri: self._find_digest(item) for item in inputs}

        def apply(job: job_pb2.Job) -> None:
            apply_outcome(job, outcome)
            for item in job.inputs:
                item.digest = digests.get(item.uri, "")

        return self._change_own(job_id, apply)

    def request_cancel(self, job_id: str, cancellation: Cancellation) -> job_pb2.Job:
        """Requests the cancellation of a job; one that is queued is CANCELLED at once.

        Raises:
            FailedPrecondition: The job has already ended otherwise.
        """

        def apply(job: job_pb2.Job) -> None:
            if job.state == job_pb2.Job.STATE_CANCELLED:
                return
            if job.state in FINAL:
                raise FailedPrecondition(f"job {job_id} has already ended: {State.Name(job.state)}", job_id=job_id)
            job.cancel_requested = True
            job.error.CopyFrom(status_of(JobCancelled(str(cancellation))))
            if job.state == job_pb2.Job.STATE_QUEUED:
                apply_outcome(job, Cancelled())

        return self.change(job_id, apply)

    def change(
        self, job_id: str, apply: Change, *, take_lease: bool = False, own: bool = False, **columns: object
    ) -> job_pb2.Job:
        """Changes a job, and adds an event to the outbox when its state changed, in one transaction.

        Args:
            job_id: Which job.
            apply: Changes the message in place; called again when another writer came between.
            take_lease: Make the job this replica's.
            own: Refuse, by FailedPrecondition, unless this replica runs it.
            columns: Values of columns beside the message.
        """
        while True:
            with self.engine.begin() as connection:
                found = self._select(connection, job_id)
                job = job_pb2.Job()
                job.CopyFrom(found.job)
                if own and (found.owner != self.holder.name or job.state != job_pb2.Job.STATE_RUNNING):
                    raise FailedPrecondition(f"job {job_id} is no longer this replica's", job_id=job_id)
                apply(job)
                if job == found.job:
                    return job
                if take_lease:
                    columns |= {"owner": self.holder.name, "leased_until": self.holder.expiry(connection)}
                written = update_job(connection, found.job, job, **columns)
            if written:
                if job.state != found.job.state:
                    failpoint("after-job-commit")
                return job

    def _change_own(self, job_id: str, apply: Change) -> job_pb2.Job:
        return self.change(job_id, apply, own=True)

    def _select(self, connection: sql.Connection, job_id: str) -> StoredJob:
        found = select_job(connection, self.service, job_id)
        if found is None:
            raise NotFound(f"the {self.service} has no job {job_id}: ListJobs shows what it has", job_id=job_id)
        return found


def _retry(job: job_pb2.Job) -> None:
    if job.state not in REPEATABLE:
        return
    job.state = job_pb2.Job.STATE_QUEUED
    job.cancel_requested = False
    job.attempt = 0
    job.ClearField("error")
    job.ClearField("end_time")


def _require(job: job_pb2.Job, *states: "job_pb2.Job.State.ValueType") -> None:
    if job.state not in states:
        raise FailedPrecondition(f"job {job.job_id} is {State.Name(job.state)}", job_id=job.job_id)

"""Leases of jobs: each replica renews those of the jobs that it runs, and requeues jobs whose lease has expired.

A job that crashes its service must not do so for ever, and a service that is restarted often must not make its jobs
fail. So crashes count only while the job makes no progress between them; graceful shutdowns never do.
"""

from dataclasses import dataclass

import sqlalchemy as sql
from google.rpc import code_pb2, status_pb2

from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import clock, reading
from gpt2_common.jobs.outcome import Failed, Suspended, apply_outcome
from gpt2_common.jobs.rows import JOBS, is_job, select_job, update_job
from gpt2_common.jobs.store import JobStore
from gpt2_common.lease import has_expired


@dataclass(frozen=True, slots=True)
class HeldJobs:
    """Jobs whose leases a replica holds."""

    job_ids: frozenset[str]
    """All of them."""
    cancelled: frozenset[str]
    """Those whose cancellation was requested, through whichever replica."""


def renew_leases(store: JobStore) -> HeldJobs:
    """Renews the leases of the jobs that this replica runs."""
    own = (
        JOBS.c.service == store.service,
        JOBS.c.owner == store.holder.name,
        JOBS.c.state == job_pb2.Job.STATE_RUNNING,
    )
    with store.engine.begin() as connection:
        connection.execute(JOBS.update().where(*own).values(leased_until=store.holder.expiry(connection)))
        rows = connection.execute(sql.select(JOBS.c.job).where(*own)).all()
    jobs = [job_pb2.Job.FromString(row.job) for row in rows]
    return HeldJobs(
        frozenset(job.job_id for job in jobs), frozenset(job.job_id for job in jobs if job.cancel_requested)
    )


def requeue_expired(store: JobStore, max_crashes: int) -> list[str]:
    """Requeues jobs of replicas whose leases have expired; fails those with too many crashes without progress.

    Returns:
        The ids of the jobs.
    """
    query = sql.select(JOBS.c.job_id, JOBS.c.owner, JOBS.c.leased_until).where(
        JOBS.c.service == store.service, JOBS.c.state == job_pb2.Job.STATE_RUNNING
    )
    with reading(store.engine) as connection:
        rows = connection.execute(query).all()
        now = clock(connection) if rows else 0.0
    expired = [row for row in rows if row.owner != store.holder.name and has_expired(row.owner, row.leased_until, now)]
    return [row.job_id for row in expired if _requeue(store, row.job_id, row.owner, max_crashes)]


def _requeue(store: JobStore, job_id: str, owner: str | None, max_crashes: int) -> bool:
    with store.engine.begin() as connection:
        query = sql.select(JOBS).where(*is_job(store.service, job_id)).with_for_update()
        row = connection.execute(query).one()
        still_expired = row.owner == owner and has_expired(row.owner, row.leased_until, clock(connection))
        if row.state != job_pb2.Job.STATE_RUNNING or not still_expired:
            return False
        found = select_job(connection, store.service, job_id)
        if found is None:
            return False
        before, job = job_pb2.Job(), found.job
        before.CopyFrom(job)
        progress = f"{job.progress.phase} {job.progress.done}"[:300]
        crashes = (row.crashes or 0) + 1 if progress == row.progress_at_crash else 1
        apply_outcome(job, Failed(_too_many(crashes)) if crashes >= max_crashes else Suspended())
        return update_job(connection, before, job, owner=None, crashes=crashes, progress_at_crash=progress)


def _too_many(crashes: int) -> status_pb2.Status:
    return status_pb2.Status(
        code=code_pb2.ABORTED,
        message=f"GPT2_MAX_ATTEMPTS: {crashes} consecutive crashes of the service without progress of the job; "
        "see the service's log for why, then start the job again with retry_failed",
    )

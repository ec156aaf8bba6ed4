"""Who runs a job: each replica renews the leases of its own, and takes over those of a replica that has died.

A job that brings its service down must not do so for ever, and a service that is restarted often must not make its jobs
fail. So deaths of the service count only while the job comes no further between them; restarts in good order never do.
"""

from dataclasses import dataclass

import sqlalchemy as sql
from google.rpc import code_pb2, status_pb2

from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import clock, reading
from gpt2_common.jobs.rows import JOBS, is_job, update_job
from gpt2_common.jobs.store import JobStore, end_badly, put_back
from gpt2_common.lease import is_over


@dataclass(frozen=True, slots=True)
class OwnJobs:
    """What a replica should know of the jobs that it runs."""

    job_ids: frozenset[str]
    """Those that are still its own."""
    cancelled: frozenset[str]
    """Those of them that are to stop, whichever replica was told."""


def renew(store: JobStore) -> OwnJobs:
    """Renews the leases of the jobs that this replica runs."""
    mine = (
        JOBS.c.service == store.service,
        JOBS.c.owner == store.replica,
        JOBS.c.state == job_pb2.Job.STATE_RUNNING,
    )
    with store.engine.begin() as connection:
        connection.execute(JOBS.update().where(*mine).values(leased_until=clock(connection) + store.lease_seconds))
        rows = connection.execute(sql.select(JOBS.c.job).where(*mine)).all()
    jobs = [job_pb2.Job.FromString(row.job) for row in rows]
    return OwnJobs(frozenset(job.job_id for job in jobs), frozenset(job.job_id for job in jobs if job.cancel_requested))


def take_over(store: JobStore, max_deaths: int) -> list[str]:
    """Queues the jobs of replicas that have died; fails those that have found too many deaths.

    Returns:
        The ids of the jobs.
    """
    query = sql.select(JOBS.c.job_id, JOBS.c.owner, JOBS.c.leased_until).where(
        JOBS.c.service == store.service, JOBS.c.state == job_pb2.Job.STATE_RUNNING
    )
    with reading(store.engine) as connection:
        rows = connection.execute(query).all()
        now = clock(connection) if rows else 0.0
    orphans = [row for row in rows if row.owner != store.replica and is_over(row.owner, row.leased_until, now)]
    return [row.job_id for row in orphans if _take_over(store, row.job_id, row.owner, max_deaths)]


def _take_over(store: JobStore, job_id: str, owner: str | None, max_deaths: int) -> bool:
    with store.engine.begin() as connection:
        query = sql.select(JOBS).where(*is_job(store.service, job_id)).with_for_update()
        row = connection.execute(query).one()
        still_orphaned = row.owner == owner and is_over(row.owner, row.leased_until, clock(connection))
        if row.state != job_pb2.Job.STATE_RUNNING or not still_orphaned:
            return False
        before, job = job_pb2.Job.FromString(row.job), job_pb2.Job.FromString(row.job)
        mark = f"{job.progress.phase} {job.progress.done}"[:300]
        deaths = (row.deaths or 0) + 1 if mark == row.mark else 1
        if deaths >= max_deaths:
            end_badly(job, _too_many(deaths))
        else:
            put_back(job)
        return update_job(connection, before, job, owner=None, deaths=deaths, mark=mark)


def _too_many(deaths: int) -> status_pb2.Status:
    return status_pb2.Status(
        code=code_pb2.ABORTED,
        message=f"the service died {deaths} times in a row while the job came no further, the limit of "
        "GPT2_MAX_ATTEMPTS: see the service's log for why, then start the job again with retry_failed",
    )

"""Adds jobs that an earlier version has written, before this start or concurrently, to the tables of runs."""

import logging
from typing import Any

import sqlalchemy as sql

from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import lock, reading
from gpt2_common.jobs.plans import restore_plan
from gpt2_common.jobs.rows import JOBS
from gpt2_common.jobs.run_rows import JOB_SUMMARIES, RUNS, UNFINISHED, summary_row

_log = logging.getLogger(__name__)
_JOBS_AT_ONCE = 2000

Jobs = dict[int, job_pb2.Job]
"""Whole jobs by their positions, in order."""


def complete_runs(engine: sql.Engine, service: str) -> None:
    """Brings the tables of runs up to date, in batches that are kept when the service is killed."""
    _update_changed(engine, service)
    with reading(engine) as connection:
        missing = _count(connection, JOBS, service) - _count(connection, JOB_SUMMARIES, service)
    if missing <= 0:
        return
    _log.info("%d jobs are added to the tables of runs", missing)
    position = 0
    while True:
        with engine.begin() as connection:
            _lock(connection, service)
            jobs = _missing(connection, service, position)
            if not jobs:
                break
            _add(connection, service, jobs)
            position = max(jobs)
    _log.info("the jobs were added")


def _count(connection: sql.Connection, table: sql.Table, service: str) -> int:
    query = sql.select(sql.func.count()).select_from(table).where(table.c.service == service)
    return int(connection.execute(query).scalar_one())


def _lock(connection: sql.Connection, service: str) -> None:
    """Serializes replicas that start together, and keeps running ones from adding to a run meanwhile."""
    lock(connection, f"runs of {service}")
    if connection.dialect.name == "postgresql":
        connection.execute(sql.text("LOCK TABLE runs IN EXCLUSIVE MODE"))


def _missing(connection: sql.Connection, service: str, after: int) -> Jobs:
    """The next jobs without a summary."""
    summarized = sql.select(JOB_SUMMARIES.c.position).where(JOB_SUMMARIES.c.position == JOBS.c.position).exists()
    query = sql.select(JOBS.c.position, JOBS.c.job, JOBS.c.plan).where(
        JOBS.c.service == service, JOBS.c.position > after, ~summarized
    )
    rows = connection.execute(query.order_by(JOBS.c.position).limit(_JOBS_AT_ONCE))
    return {row.position: restore_plan(job_pb2.Job.FromString(row.job), row.plan, None) for row in rows}


def _add(connection: sql.Connection, service: str, jobs: Jobs) -> None:
    by_run: dict[str, list[job_pb2.Job]] = {}
    for job in jobs.values():
        by_run.setdefault(job.run_id, []).append(job)
    query = sql.select(RUNS.c.run_id, RUNS.c.started, RUNS.c.jobs).where(
        RUNS.c.service == service, RUNS.c.run_id.in_(by_run)
    )
    there = {row.run_id: row for row in connection.execute(query)}
    new, more = [], []
    for run_id, added in by_run.items():
        started = min(job.create_time.ToNanoseconds() for job in added)
        row = there.get(run_id)
        if row is None:
            plan = job_pb2.RunPlan(stages=added[0].plan.stages).SerializeToString()
            new.append({"service": service, "run_id": run_id, "started": started, "jobs": len(added), "plan": plan})
        else:
            more.append({"of": run_id, "first": min(started, row.started), "count": row.jobs + len(added)})
    if new:
        connection.execute(RUNS.insert(), new)
    if more:
        of_run = (RUNS.c.service == service, RUNS.c.run_id == sql.bindparam("of"))
        changes: dict[str, Any] = {"started": sql.bindparam("first"), "jobs": sql.bindparam("count")}
        connection.execute(RUNS.update().where(*of_run).values(changes), more)
    connection.execute(JOB_SUMMARIES.insert(), [summary_row(job, position) for position, job in jobs.items()])


def _update_changed(engine: sql.Engine, service: str) -> None:
    """Updates summaries of unfinished jobs that have changed since."""
    query = sql.select(JOBS.c.position, JOBS.c.job).where(
        JOB_SUMMARIES.c.service == service,
        JOB_SUMMARIES.c.state.in_(UNFINISHED),
        JOBS.c.position == JOB_SUMMARIES.c.position,
        JOBS.c.revision != JOB_SUMMARIES.c.revision,
    )
    with engine.begin() as connection:
        for row in connection.execute(query.with_for_update(of=JOBS)).all():
            values = summary_row(job_pb2.Job.FromString(row.job), row.position)
            connection.execute(JOB_SUMMARIES.update().where(JOB_SUMMARIES.c.position == row.position).values(values))

"""The tables that lists of runs are read from: a row for each run of a service, and a summary of each of its jobs.

Both are written in the transaction that writes the job, so that a list costs what it shows, however much a job holds.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sql
from google.rpc import status_pb2

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_common.database import METADATA, reading
from gpt2_contracts.artifact import VERSION
from gpt2_contracts.metrics import VALIDATION_LOSS
from gpt2_contracts.model_version import MODEL_NAME_PROPERTY, VERSION_PROPERTY

RUNS = sql.Table(
    "runs",
    METADATA,
    sql.Column("service", sql.String(32), primary_key=True),
    # Collated by bytes, as the services and their callers sort it, whatever the database's collation.
    sql.Column("run_id", sql.String(200).with_variant(sql.String(200, "C"), "postgresql"), primary_key=True),
    # When its first job was created, in nanoseconds since 1970.
    sql.Column("started", sql.BigInteger, nullable=False),
    sql.Column("jobs", sql.Integer, nullable=False),
    # The plan of its first job, without artifacts, as a RunPlan.
    sql.Column("plan", sql.LargeBinary, nullable=False),
)
sql.Index("ix_runs_newest", RUNS.c.service, RUNS.c.started, RUNS.c.run_id)

JOB_SUMMARIES = sql.Table(
    "job_summaries",
    METADATA,
    # That of the job.
    sql.Column("position", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("service", sql.String(32), nullable=False),
    sql.Column("run_id", sql.String(200), nullable=False),
    sql.Column("state", sql.Integer, nullable=False),
    sql.Column("revision", sql.BigInteger, nullable=False),
    sql.Column("summary", sql.LargeBinary, nullable=False),
)
sql.Index("ix_job_summaries_run", JOB_SUMMARIES.c.service, JOB_SUMMARIES.c.run_id, JOB_SUMMARIES.c.position)

MAX_JOBS_OF_RUN = 100
"""Jobs of one run that a list has; the newest, where there are more."""

_MAX_TEXT = 300
_LISTED_PROPERTIES = (MODEL_NAME_PROPERTY, VERSION_PROPERTY)
_LARGEST_PAGE_BYTES = 2 << 20
_JOBS_AT_ONCE = 1000
UNFINISHED = (job_pb2.Job.STATE_QUEUED, job_pb2.Job.STATE_RUNNING)
_MAX_TIME = (1 << 63) - 1
_PLACE = re.compile(r"([0-9]{1,19}):([A-Za-z0-9._-]{1,200})")


class RunPlace(NamedTuple):
    """A run's place in the order of runs, which is the same in all services: by start, then by id."""

    started: int
    run_id: str

    @classmethod
    def parse(cls, token: str) -> "RunPlace | None":
        """Reads what `str` writes; None where it is something else."""
        found = _PLACE.fullmatch(token)
        return cls(min(int(found[1]), _MAX_TIME), found[2]) if found else None

    def __str__(self) -> str:
        return f"{self.started}:{self.run_id}"


def add_to_run(connection: sql.Connection, job: job_pb2.Job) -> job_pb2.RunPlan:
    """Counts a new job with its run, whose id is locked. Returns the plan that is stored with the run."""
    created = job.create_time.ToNanoseconds()
    is_run = (RUNS.c.service == job.service, RUNS.c.run_id == job.run_id)
    row = connection.execute(sql.select(RUNS.c.started, RUNS.c.jobs, RUNS.c.plan).where(*is_run)).one_or_none()
    if row is None:
        plan = job_pb2.RunPlan(stages=job.plan.stages)
        connection.execute(
            RUNS.insert().values(
                service=job.service, run_id=job.run_id, started=created, jobs=1, plan=plan.SerializeToString()
            )
        )
    else:
        plan = job_pb2.RunPlan.FromString(row.plan)
        started = min(created, row.started)
        connection.execute(RUNS.update().where(*is_run).values(started=started, jobs=row.jobs + 1))
    return plan


def add_summary(connection: sql.Connection, job: job_pb2.Job, position: int) -> None:
    """Adds the summary of a new job."""
    connection.execute(JOB_SUMMARIES.insert().values(summary_row(job, position)))


def update_summary(connection: sql.Connection, job: job_pb2.Job, position: "sql.ColumnElement[int]") -> bool:
    """Updates the summary of a job. Returns False if there is none."""
    values = {"state": job.state, "revision": job.revision, "summary": summarise(job).SerializeToString()}
    updated = connection.execute(JOB_SUMMARIES.update().where(JOB_SUMMARIES.c.position == position).values(values))
    return updated.rowcount == 1


def list_runs(
    engine: sql.Engine, service: str, run_ids: Sequence[str] = (), limit: int = 100, after: RunPlace | None = None
) -> tuple[list[jobs_service_pb2.RunSummary], RunPlace | None]:
    """Lists runs with their jobs in a service, newest first: as many as fit into one answer.

    Args:
        engine: Where the tables are.
        service: Name of the service.
        run_ids: Only these runs, unless empty.
        limit: Maximum number of runs to return.
        after: Place that the page begins after; None for the first page.

    Returns:
        The runs, and the place that the next page begins after, or None.
    """
    found: list[jobs_service_pb2.RunSummary] = []
    room = _LARGEST_PAGE_BYTES
    with reading(engine) as connection:
        rows = _rows(connection, service, run_ids, limit + 1, after)
        for row, summaries in _with_summaries(connection, service, rows[:limit]):
            room -= sum(map(len, summaries))
            if found and room < 0:
                break
            run = jobs_service_pb2.RunSummary(
                run_id=row.run_id,
                jobs=map(job_pb2.Job.FromString, summaries),
                job_count=row.jobs,
                page_token=str(RunPlace(row.started, row.run_id)),
            )
            run.create_time.FromNanoseconds(row.started)
            found.append(run)
    if len(found) == len(rows):
        return found, None
    last = rows[len(found) - 1]
    return found, RunPlace(last.started, last.run_id)


def summarise(job: job_pb2.Job) -> job_pb2.Job:
    """A summary of a job, as lists of runs have it."""
    return job_pb2.Job(
        job_id=job.job_id,
        run_id=job.run_id,
        service=job.service,
        kind=job.kind,
        state=job.state,
        progress=job.progress if job.state in UNFINISHED and job.HasField("progress") else None,
        attempt=job.attempt,
        create_time=job.create_time,
        start_time=job.start_time if job.HasField("start_time") else None,
        end_time=job.end_time if job.HasField("end_time") else None,
        error=status_pb2.Status(code=job.error.code, message=_short(job.error.message))
        if job.HasField("error")
        else None,
        revision=job.revision,
        cancel_requested=job.cancel_requested,
        warnings=map(_short, job.warnings),
        outputs=[_version(output) for output in job.outputs if output.kind == VERSION],
        plan=_remaining_stages(job.plan) if job.plan.stages else None,
    )


def _rows(
    connection: sql.Connection, service: str, run_ids: Sequence[str], limit: int, after: RunPlace | None
) -> Sequence[Any]:
    """Rows of runs, newest first."""
    query = sql.select(RUNS.c.run_id, RUNS.c.started, RUNS.c.jobs).where(RUNS.c.service == service)
    if run_ids:
        # Sorted here: SQLite would scan all runs in their order rather than find these by their ids.
        rows = connection.execute(query.where(RUNS.c.run_id.in_(run_ids))).all()
        places = sorted(((RunPlace(row.started, row.run_id), row) for row in rows), reverse=True)
        return [row for place, row in places if after is None or place < after][:limit]
    if after is not None:
        query = query.where(sql.tuple_(RUNS.c.started, RUNS.c.run_id) < sql.tuple_(*after))
    return connection.execute(query.order_by(RUNS.c.started.desc(), RUNS.c.run_id.desc()).limit(limit)).all()


def _with_summaries(connection: sql.Connection, service: str, runs: Sequence[Any]) -> Iterator[tuple[Any, list[bytes]]]:
    """Rows of runs with the summaries of their jobs, oldest first; few jobs are read ahead of the caller."""
    for some in _portions(runs):
        found = _summaries(connection, service, [run.run_id for run in some if run.jobs <= MAX_JOBS_OF_RUN])
        for run in some:
            # Each of the others has so many jobs that one query more is nothing beside them.
            yield run, found.get(run.run_id) or _newest_summaries(connection, service, run.run_id)


def _portions(runs: Sequence[Any]) -> Iterator[list[Any]]:
    portion: list[Any] = []
    jobs = 0
    for run in runs:
        portion.append(run)
        jobs += min(run.jobs, MAX_JOBS_OF_RUN)
        if jobs >= _JOBS_AT_ONCE:
            yield portion
            portion, jobs = [], 0
    if portion:
        yield portion


def _summaries(connection: sql.Connection, service: str, run_ids: Sequence[str]) -> dict[str, list[bytes]]:
    query = sql.select(JOB_SUMMARIES.c.run_id, JOB_SUMMARIES.c.summary).where(
        JOB_SUMMARIES.c.service == service, JOB_SUMMARIES.c.run_id.in_(run_ids)
    )
    found: dict[str, list[bytes]] = {}
    for row in connection.execute(query.order_by(JOB_SUMMARIES.c.run_id, JOB_SUMMARIES.c.position)):
        found.setdefault(row.run_id, []).append(row.summary)
    return found


def _newest_summaries(connection: sql.Connection, service: str, run_id: str) -> list[bytes]:
    query = sql.select(JOB_SUMMARIES.c.summary).where(
        JOB_SUMMARIES.c.service == service, JOB_SUMMARIES.c.run_id == run_id
    )
    newest = query.order_by(JOB_SUMMARIES.c.position.desc()).limit(MAX_JOBS_OF_RUN)
    return list(reversed(connection.execute(newest).scalars().all()))


def summary_row(job: job_pb2.Job, position: int) -> dict[str, object]:
    """The columns of a job's summary."""
    return {
        "position": position,
        "service": job.service,
        "run_id": job.run_id,
        "state": job.state,
        "revision": job.revision,
        "summary": summarise(job).SerializeToString(),
    }


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _version(output: artifact_pb2.Artifact) -> artifact_pb2.Artifact:
    """A registered version as lists have it."""
    return artifact_pb2.Artifact(
        name=output.name,
        kind=output.kind,
        uri=output.uri,
        counts={name: value for name, value in output.counts.items() if name == VALIDATION_LOSS},
        properties={name: value for name, value in output.properties.items() if name in _LISTED_PROPERTIES},
    )


def _remaining_stages(plan: job_pb2.RunPlan) -> job_pb2.RunPlan:
    return job_pb2.RunPlan(stages=[job_pb2.PlannedStage(start=stage.start, name=stage.name) for stage in plan.stages])

"""The job store: each job's row and the event that tells of its change are committed in one transaction.

A row holds the job as its protobuf message; the columns beside it exist to be searched. Changes are made by
compare-and-set on the revision, so that two writers cannot both move a job on.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import sqlalchemy as sql
from google.protobuf.message import Message
from google.rpc import status_pb2
from sqlalchemy.exc import IntegrityError, OperationalError

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.errors import AlreadyExists, FailedPrecondition, JobCancelled, NotFound, ResourceExhausted
from gpt2_common.events.cloudevent import CloudEvent
from gpt2_common.events.outbox import OUTBOX_METADATA, add_to_outbox
from gpt2_common.jobs.definition import StartRequest
from gpt2_common.settings import ServiceSettings, SettingsError
from gpt2_common.status import status_of

State = job_pb2.Job.State
FINAL = frozenset({job_pb2.Job.STATE_SUCCEEDED, job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED})

_JOBS = sql.Table(
    "jobs",
    OUTBOX_METADATA,
    sql.Column("position", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("service", sql.String(32), nullable=False),
    sql.Column("job_id", sql.String(200), nullable=False),
    sql.Column("run_id", sql.String(200), nullable=False, index=True),
    sql.Column("kind", sql.String(64), nullable=False),
    sql.Column("state", sql.Integer, nullable=False, index=True),
    sql.Column("revision", sql.BigInteger, nullable=False),
    sql.Column("job", sql.LargeBinary, nullable=False),
    sql.Column("request", sql.LargeBinary, nullable=False),
    sql.UniqueConstraint("service", "job_id"),
)


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job and the bytes of the request that created it."""

    job: job_pb2.Job
    request: bytes


class JobStore:
    """Jobs of one service in a SQL database.

    Args:
        engine: Where the tables are.
        service: Name of the service.
        queue_limit: Jobs that may wait at once.
    """

    def __init__(self, engine: sql.Engine, service: str, queue_limit: int) -> None:
        self._engine = engine
        self._service = service
        self._queue_limit = queue_limit

    def create(self, kind: str, request: StartRequest) -> job_pb2.Job:
        """Creates the job that a start call asks for, or returns the one that it asked for before.

        Raises:
            AlreadyExists: The id belongs to a job with another request.
            ResourceExhausted: Too many jobs wait.
        """
        digest = request_digest(request)
        job_id = request.job.job_id or f"{self._service}-{uuid.uuid4().hex[:12]}"
        try:
            with self._engine.begin() as connection:
                found = self._select(connection, job_id)
                if found is None:
                    return self._insert(connection, kind, job_id, digest, request)
        except IntegrityError:
            # Another call created it between our look and our insert.
            found = self._find(job_id)
        job = cast(StoredJob, found).job
        if job.kind != kind or job.request_digest != digest:
            raise AlreadyExists(
                f"job {job_id} exists with another request ({job.kind}): "
                "choose another job_id, or repeat the same request",
                job_id=job_id,
            )
        if request.job.retry_failed and job.state in (job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED):
            return self.change(job_id, _queue_again)
        return job

    def get(self, job_id: str) -> StoredJob:
        """Returns a job with its request. Raises NotFound."""
        found = self._find(job_id)
        if found is None:
            raise NotFound(f"the {self._service} has no job {job_id}: ListJobs shows what it has", job_id=job_id)
        return found

    def page(
        self, run_id: str = "", states: Sequence[int] = (), limit: int = 100, before: int | None = None
    ) -> tuple[list[job_pb2.Job], int | None]:
        """Lists jobs, newest first.

        Args:
            run_id: Only jobs of this run, unless empty.
            states: Only jobs in one of these states, unless empty.
            limit: Most jobs to return.
            before: Position that the page begins after; None for the first page.

        Returns:
            The jobs, and the position that the next page begins after, or None.
        """
        query = sql.select(_JOBS.c.position, _JOBS.c.job).where(_JOBS.c.service == self._service)
        if run_id:
            query = query.where(_JOBS.c.run_id == run_id)
        if states:
            query = query.where(_JOBS.c.state.in_(states))
        if before is not None:
            query = query.where(_JOBS.c.position < before)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_JOBS.c.position.desc()).limit(limit + 1)).all()
        jobs = [job_pb2.Job.FromString(row.job) for row in rows[:limit]]
        return jobs, rows[limit - 1].position if len(rows) > limit else None

    def queued(self) -> list[job_pb2.Job]:
        """Jobs that wait, oldest first."""
        query = (
            sql.select(_JOBS.c.job)
            .where(_JOBS.c.service == self._service, _JOBS.c.state == job_pb2.Job.STATE_QUEUED)
            .order_by(_JOBS.c.position)
        )
        with self._engine.connect() as connection:
            return [job_pb2.Job.FromString(row.job) for row in connection.execute(query)]

    def begin(self, job_id: str) -> job_pb2.Job:
        """QUEUED to RUNNING, as another attempt."""

        def apply(job: job_pb2.Job) -> None:
            _require(job, job_pb2.Job.STATE_QUEUED)
            job.state = job_pb2.Job.STATE_RUNNING
            job.attempt += 1
            job.start_time.GetCurrentTime()

        return self.change(job_id, apply)

    def progress(self, job_id: str, progress: job_pb2.Progress) -> job_pb2.Job:
        """Notes how far a running job is. No event is published."""

        def apply(job: job_pb2.Job) -> None:
            _require(job, job_pb2.Job.STATE_RUNNING)
            job.progress.CopyFrom(progress)

        return self.change(job_id, apply)

    def succeed(self, job_id: str, outputs: Sequence[artifact_pb2.Artifact]) -> job_pb2.Job:
        """RUNNING to SUCCEEDED."""

        def apply(job: job_pb2.Job) -> None:
            _require(job, job_pb2.Job.STATE_RUNNING)
            _end(job, job_pb2.Job.STATE_SUCCEEDED)
            job.outputs.extend(outputs)

        return self.change(job_id, apply)

    def fail(self, job_id: str, error: status_pb2.Status) -> job_pb2.Job:
        """QUEUED or RUNNING to FAILED; to CANCELLED when a cancel was asked for, which then is why it ended."""

        def apply(job: job_pb2.Job) -> None:
            _require(job, job_pb2.Job.STATE_QUEUED, job_pb2.Job.STATE_RUNNING)
            cancelled = job.cancel_requested
            _end(job, job_pb2.Job.STATE_CANCELLED if cancelled else job_pb2.Job.STATE_FAILED)
            if not cancelled:
                job.error.CopyFrom(error)

        return self.change(job_id, apply)

    def suspend(self, job_id: str) -> job_pb2.Job:
        """RUNNING back to QUEUED, as its service stops; to CANCELLED when a cancel was asked for."""

        def apply(job: job_pb2.Job) -> None:
            _require(job, job_pb2.Job.STATE_RUNNING)
            if job.cancel_requested:
                _end(job, job_pb2.Job.STATE_CANCELLED)
            else:
                job.state = job_pb2.Job.STATE_QUEUED

        return self.change(job_id, apply)

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
            why = f": {reason}" if reason else ""
            job.cancel_requested = True
            job.error.CopyFrom(status_of(JobCancelled(f"cancelled by a caller{why}")))
            if job.state == job_pb2.Job.STATE_QUEUED:
                _end(job, job_pb2.Job.STATE_CANCELLED)

        return self.change(job_id, apply)

    def running(self) -> list[str]:
        """Ids of the jobs that are, or were when the service last stopped, at work."""
        query = sql.select(_JOBS.c.job_id).where(
            _JOBS.c.service == self._service, _JOBS.c.state == job_pb2.Job.STATE_RUNNING
        )
        with self._engine.connect() as connection:
            return [row.job_id for row in connection.execute(query)]

    def change(self, job_id: str, apply: Callable[[job_pb2.Job], None]) -> job_pb2.Job:
        """Changes a job, and adds an event to the outbox when its state changed, in one transaction.

        Args:
            job_id: Which job.
            apply: Changes the message in place; called again when another writer came between.
        """
        while True:
            with self._engine.begin() as connection:
                found = self._select(connection, job_id)
                if found is None:
                    raise NotFound(f"the {self._service} has no job {job_id}", job_id=job_id)
                job = job_pb2.Job()
                job.CopyFrom(found.job)
                apply(job)
                if job == found.job:
                    return job
                if self._update(connection, found.job, job):
                    return job

    def _insert(
        self, connection: sql.Connection, kind: str, job_id: str, digest: str, request: StartRequest
    ) -> job_pb2.Job:
        waiting = connection.execute(
            sql.select(sql.func.count())
            .select_from(_JOBS)
            .where(_JOBS.c.service == self._service, _JOBS.c.state == job_pb2.Job.STATE_QUEUED)
        ).scalar_one()
        if waiting >= self._queue_limit:
            raise ResourceExhausted(
                f"{waiting} jobs wait already, the limit of GPT2_QUEUE_LIMIT: retry when some have ended"
            )
        job = job_pb2.Job(
            job_id=job_id,
            run_id=request.job.run_id or job_id.partition("/")[0],
            service=self._service,
            kind=kind,
            state=job_pb2.Job.STATE_QUEUED,
            request_digest=digest,
            revision=1,
        )
        job.create_time.GetCurrentTime()
        job.update_time.CopyFrom(job.create_time)
        connection.execute(
            _JOBS.insert().values(
                service=self._service,
                job_id=job_id,
                run_id=job.run_id,
                kind=kind,
                state=job.state,
                revision=job.revision,
                job=job.SerializeToString(),
                request=request.SerializeToString(deterministic=True),
            )
        )
        self._publish(connection, job, job_pb2.Job.STATE_UNSPECIFIED)
        return job

    def _update(self, connection: sql.Connection, before: job_pb2.Job, job: job_pb2.Job) -> bool:
        job.revision = before.revision + 1
        job.update_time.GetCurrentTime()
        updated = connection.execute(
            _JOBS.update()
            .where(
                _JOBS.c.service == self._service,
                _JOBS.c.job_id == job.job_id,
                _JOBS.c.revision == before.revision,
            )
            .values(state=job.state, revision=job.revision, job=job.SerializeToString())
        )
        if updated.rowcount != 1:
            return False
        if job.state != before.state:
            self._publish(connection, job, before.state)
        return True

    def _publish(self, connection: sql.Connection, job: job_pb2.Job, previous: "job_pb2.Job.State.ValueType") -> None:
        message = events_pb2.JobStateChanged(job=job, previous_state=previous)
        add_to_outbox(connection, job_event(self._service, job, message))

    def _select(self, connection: sql.Connection, job_id: str) -> StoredJob | None:
        query = sql.select(_JOBS.c.job, _JOBS.c.request).where(
            _JOBS.c.service == self._service, _JOBS.c.job_id == job_id
        )
        row = connection.execute(query).one_or_none()
        return None if row is None else StoredJob(job_pb2.Job.FromString(row.job), row.request)

    def _find(self, job_id: str) -> StoredJob | None:
        with self._engine.connect() as connection:
            return self._select(connection, job_id)


def job_event(service: str, job: job_pb2.Job, message: Message) -> CloudEvent:
    """The event that tells of a job's change; a run's events share a key, so that they keep their order."""
    return CloudEvent(
        id=str(uuid.uuid4()),
        source=f"/gpt2/{service}",
        type=message.DESCRIPTOR.full_name,
        subject=job.job_id,
        key=job.run_id,
        time=datetime.now(UTC),
        data=message.SerializeToString(),
    )


def request_digest(request: StartRequest) -> str:
    """SHA-256 of a request without its job options: what the work is, whoever asks for it."""
    message = cast(Message, request)
    work = type(message).FromString(message.SerializeToString())
    work.ClearField("job")
    return hashlib.sha256(work.SerializeToString(deterministic=True)).hexdigest()


def database_url(service: str, settings: ServiceSettings) -> str:
    """The URL of a service's database: the setting, or a SQLite file in `.gpt2/`, which is made when it is missing."""
    if settings.database_url:
        return settings.database_url
    folder = Path(".gpt2").absolute()
    folder.mkdir(exist_ok=True)
    return f"sqlite:///{folder / service}.db"


@contextmanager
def open_database(url: str) -> Iterator[sql.Engine]:
    """Connects to the database and creates the tables that are missing.

    Raises:
        SettingsError: The database cannot be used.
    """
    engine = sql.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name == "sqlite":
        sql.event.listen(engine, "connect", _configure_sqlite)
        # Take the write lock when a transaction begins: SQLite cannot wait for it later without a deadlock.
        sql.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        OUTBOX_METADATA.create_all(engine)
        yield engine
    except OperationalError as error:
        raise SettingsError(f"GPT2_DATABASE_URL: the database cannot be used: {error.orig}") from error
    finally:
        engine.dispose()


def _configure_sqlite(connection: "sql.engine.interfaces.DBAPIConnection", _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's own BEGIN, above, not the driver's
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def _queue_again(job: job_pb2.Job) -> None:
    if job.state not in (job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED):
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


def _require(job: job_pb2.Job, *states: "job_pb2.Job.State.ValueType") -> None:
    if job.state not in states:
        raise FailedPrecondition(f"job {job.job_id} is {State.Name(job.state)}", job_id=job.job_id)

"""Runs the jobs of one replica: takes queued jobs within the limits, records outcomes, requeues expired ones."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from google.rpc import status_pb2
from sqlalchemy.exc import DBAPIError

from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import poll_seconds
from gpt2_common.errors import FailedPrecondition, ResourceExhausted
from gpt2_common.jobs.attempt import Attempt, Launcher
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.leases import renew_leases, requeue_expired
from gpt2_common.jobs.messages import JobWarning, Report
from gpt2_common.jobs.outcome import Failed, Outcome
from gpt2_common.jobs.store import JobStore
from gpt2_common.settings import ServiceSettings
from gpt2_common.status import status_of

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 2.0
_RENEWALS_IN_LEASE = 6
_MAX_ERROR_BYTES = 64 * 1024


class JobRunner:
    """Runs jobs until it is stopped.

    Args:
        store: Where the jobs are stored. Jobs that another replica queued or abandoned are found within two seconds.
        kinds: Kinds of job that it runs, by name.
        settings: The service's settings.
        on_change: Called with a job's id after each change of its state.
        on_progress: Called with a job's id when it has reported progress.
        launch: Makes the attempts, such as child processes.
    """

    def __init__(
        self,
        store: JobStore,
        kinds: Mapping[str, JobKind],
        settings: ServiceSettings,
        on_change: Callable[[str], None],
        on_progress: Callable[[str], None],
        launch: Launcher,
    ) -> None:
        self._store = store
        self._poll_seconds = poll_seconds(store.engine)
        self._kinds = kinds
        self._settings = settings
        self._on_change = on_change
        self._on_progress = on_progress
        self._launch = launch
        self._attempts: dict[str, Attempt] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running_kinds: dict[str, str] = {}
        self._warnings: dict[str, list[str]] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    @property
    def running(self) -> int:
        """Number of jobs that run now."""
        return len(self._tasks)

    def wake(self) -> None:
        """Looks for queued jobs at once."""
        self._wake.set()

    async def cancel(self, job_id: str) -> None:
        """Asks a job to stop for good, where it runs here."""
        attempt = self._attempts.get(job_id)
        if attempt is not None:
            await attempt.cancel()

    async def run(self) -> None:
        """Runs jobs until `stop`. Retries while the database is unavailable."""
        heartbeat = asyncio.create_task(self._renew_leases())
        try:
            while not self._stopping:
                self._wake.clear()
                pause = self._poll_seconds
                try:
                    await self._schedule()
                except DBAPIError as error:
                    _log.warning("no job is started, as the database is unavailable: %s", error.orig)
                    pause = _RETRY_SECONDS
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
        finally:
            heartbeat.cancel()

    async def stop(self) -> None:
        """Stops taking jobs, and suspends those that run. Returns when they have stopped."""
        self._stopping = True
        self._wake.set()
        await asyncio.gather(*(attempt.suspend() for attempt in list(self._attempts.values())))
        await asyncio.gather(*list(self._tasks.values()), return_exceptions=True)

    async def _schedule(self) -> None:
        """Requeues jobs whose lease has expired, and starts queued jobs."""
        for job_id in await asyncio.to_thread(requeue_expired, self._store, self._settings.max_attempts):
            _log.info("the lease of job %s had expired: it is requeued", job_id, extra={"job_id": job_id})
            self._on_change(job_id)
        for job in await asyncio.to_thread(self._store.list_queued):
            if not self._stopping and self._has_capacity(job):
                self._running_kinds[job.job_id] = job.kind
                self._tasks[job.job_id] = asyncio.create_task(self._run_job(job), name=f"job {job.job_id}")

    async def _renew_leases(self) -> None:
        """Renews leases of running jobs, passes cancellation on, abandons what has become another replica's."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / _RENEWALS_IN_LEASE)
            if not self._tasks:
                continue
            attempts = dict(self._attempts)
            try:
                held = await asyncio.to_thread(renew_leases, self._store)
            except DBAPIError as error:
                # Children without a heartbeat end themselves when their lease is over.
                _log.warning("leases are not renewed, as the database is unavailable: %s", error.orig)
                continue
            for job_id, attempt in attempts.items():
                if job_id in held.cancelled:
                    await attempt.cancel()
                elif job_id in held.job_ids:
                    await attempt.heartbeat()
                else:
                    attempt.abandon()

    def _has_capacity(self, job: job_pb2.Job) -> bool:
        if job.job_id in self._tasks or job.kind not in self._kinds:
            return False
        running = sum(kind == job.kind for kind in self._running_kinds.values())
        return running < self._kinds[job.kind].work.concurrency

    async def _run_job(self, queued: job_pb2.Job) -> None:
        """Runs one attempt of a queued job. Its failure does not affect the others."""
        job_id = queued.job_id
        fields = {"job_id": job_id, "run_id": queued.run_id}
        try:
            attempt = await self._begin(queued)
            outcome = await attempt.run(self._settings.cancel_grace_seconds)
            ended = await self._record(job_id, outcome)
            _log.info("%s is %s", queued.kind, job_pb2.Job.State.Name(ended.state), extra=fields)
        except FailedPrecondition as error:
            # It was cancelled, or another replica took it, after it was listed.
            _log.info("%s is not run here: %s", queued.kind, error, extra=fields)
        except Exception:  # noqa: BLE001 - one job that cannot be run must not end the others
            _log.exception("%s could not be run", queued.kind, extra=fields)
        finally:
            self._attempts.pop(job_id, None)
            self._tasks.pop(job_id, None)
            self._running_kinds.pop(job_id, None)
            self._warnings.pop(job_id, None)
            self._on_change(job_id)

    async def _begin(self, queued: job_pb2.Job) -> Attempt:
        """Takes the lease of a queued job, and makes its attempt.

        Raises:
            FailedPrecondition: It is no longer queued.
        """
        job_id = queued.job_id
        stored = await asyncio.to_thread(self._store.get, job_id)
        stored.job.CopyFrom(await asyncio.to_thread(self._store.begin, job_id))
        attempt = self._launch(self._kinds[queued.kind], stored, lambda report: self._store_report(job_id, report))
        self._attempts[job_id] = attempt
        if self._stopping:
            await attempt.suspend()
        self._on_change(job_id)
        fields = {"job_id": job_id, "run_id": queued.run_id}
        _log.info("%s starts, attempt %d", queued.kind, stored.job.attempt, extra=fields)
        return attempt

    async def _record(self, job_id: str, outcome: Outcome) -> job_pb2.Job:
        """Stores the outcome of an attempt. Retries while the database is unavailable."""
        while True:
            try:
                return await asyncio.to_thread(self._end, job_id, outcome)
            except DBAPIError as error:
                _log.warning("the outcome of job %s waits, as the database is unavailable: %s", job_id, error.orig)
                if self._stopping:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)

    def _end(self, job_id: str, outcome: Outcome) -> job_pb2.Job:
        # Again, in case the database was unavailable when they came.
        if warnings := self._warnings.get(job_id):
            self._store.warn(job_id, tuple(warnings))
        if isinstance(outcome, Failed):
            outcome = Failed(_truncated(outcome.error))
        try:
            return self._store.finish(job_id, outcome)
        except ResourceExhausted as error:
            # Its outputs do not fit into an event.
            return self._store.finish(job_id, Failed(status_of(error)))

    async def _store_report(self, job_id: str, report: Report) -> None:
        try:
            if isinstance(report, JobWarning):
                warnings = self._warnings.setdefault(job_id, [])
                warnings.append(report.text)
                await asyncio.to_thread(self._store.warn, job_id, tuple(warnings))
            else:
                await asyncio.to_thread(self._store.progress, job_id, report)
        except (DBAPIError, FailedPrecondition) as error:
            # The work continues; the next renewal of its lease finds out whether it is still ours.
            _log.debug("a report of %s is not stored: %s", job_id, error)
        self._on_progress(job_id)


def _truncated(error: status_pb2.Status) -> status_pb2.Status:
    """An error that fits into an event, however long an exception's text is."""
    if error.ByteSize() <= _MAX_ERROR_BYTES:
        return error
    return status_pb2.Status(code=error.code, message=f"{error.message[: _MAX_ERROR_BYTES // 4]} [...]")

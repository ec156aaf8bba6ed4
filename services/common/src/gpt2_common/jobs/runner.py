"""Runs the jobs of one replica: takes what waits, keeps to the limits, brings each to its end, takes over orphans."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from google.rpc import status_pb2
from sqlalchemy.exc import DBAPIError

from gpt2.jobs.v1 import job_pb2
from gpt2_common.errors import FailedPrecondition, ResourceExhausted
from gpt2_common.jobs.attempt import Attempt, Failed, Launcher, Outcome, Report, Succeeded, Warned
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.ownership import renew, take_over
from gpt2_common.jobs.store import JobStore
from gpt2_common.settings import ServiceSettings
from gpt2_common.status import status_of

_log = logging.getLogger(__name__)
_POLL_SECONDS = 2.0
_RENEWALS_IN_LEASE = 6
_LONGEST_ERROR = 64 * 1024


class JobRunner:
    """Runs jobs until it is stopped.

    Args:
        store: Where the jobs are kept.
        kinds: Kinds of job that it runs, by name.
        settings: The service's settings.
        on_change: Called with a job's id after each change of its state.
        on_progress: Called with a job's id when it has come further.
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
        self._kinds = kinds
        self._settings = settings
        self._on_change = on_change
        self._on_progress = on_progress
        self._launch = launch
        self._attempts: dict[str, Attempt] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._busy: dict[str, str] = {}
        self._warnings: dict[str, list[str]] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    @property
    def running(self) -> int:
        """How many jobs are at work now."""
        return len(self._tasks)

    def wake(self) -> None:
        """Says that a job may wait."""
        self._wake.set()

    async def cancel(self, job_id: str) -> None:
        """Tells a job to stop for good, where it runs here."""
        attempt = self._attempts.get(job_id)
        if attempt is not None:
            await attempt.cancel()

    async def run(self) -> None:
        """Runs jobs until `stop`. A database that is away is waited for."""
        heartbeat = asyncio.create_task(self._keep_leases())
        try:
            while not self._stopping:
                self._wake.clear()
                try:
                    await self._look()
                except DBAPIError as error:
                    _log.warning("no job is taken, as the database does not answer: %s", error.orig)
                await _wait(self._wake, _POLL_SECONDS)
        finally:
            heartbeat.cancel()

    async def stop(self) -> None:
        """Stops taking jobs, and tells those at work to stop where they can go on later. Returns when they have."""
        self._stopping = True
        self._wake.set()
        await asyncio.gather(*(attempt.suspend() for attempt in list(self._attempts.values())))
        await asyncio.gather(*list(self._tasks.values()), return_exceptions=True)

    async def _look(self) -> None:
        for job_id in await asyncio.to_thread(take_over, self._store, self._settings.max_attempts):
            _log.info("job %s, which another process has left, is taken up", job_id, extra={"job_id": job_id})
            self._on_change(job_id)
        for job in await asyncio.to_thread(self._store.queued):
            if not self._stopping and self._has_place(job):
                self._busy[job.job_id] = job.kind
                self._tasks[job.job_id] = asyncio.create_task(self._run_job(job), name=f"job {job.job_id}")

    async def _keep_leases(self) -> None:
        """Renews the leases of the jobs at work, passes on cancels, and stops what has become another replica's."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / _RENEWALS_IN_LEASE)
            attempts = dict(self._attempts)
            try:
                own = await asyncio.to_thread(renew, self._store)
            except DBAPIError as error:
                # The children end themselves when nothing is heard for as long as the leases last.
                _log.warning("leases are not renewed, as the database does not answer: %s", error.orig)
                continue
            for job_id, attempt in attempts.items():
                if job_id in own.cancelled:
                    await attempt.cancel()
                elif job_id in own.job_ids:
                    await attempt.keep()
                else:
                    attempt.abandon()

    def _has_place(self, job: job_pb2.Job) -> bool:
        if job.job_id in self._tasks or job.kind not in self._kinds:
            return False
        busy = sum(kind == job.kind for kind in self._busy.values())
        return busy < self._kinds[job.kind].concurrency

    async def _run_job(self, queued: job_pb2.Job) -> None:
        """Runs one attempt of a job that waits. Whatever becomes of it, the others go on."""
        job_id = queued.job_id
        fields = {"job_id": job_id, "run_id": queued.run_id}
        try:
            attempt = await self._begin(queued)
            outcome = await attempt.run(self._settings.cancel_grace_seconds)
            ended = await self._record(job_id, outcome)
            _log.info("%s is %s", queued.kind, job_pb2.Job.State.Name(ended.state), extra=fields)
        except FailedPrecondition as error:
            # It was cancelled, or another replica took it, between our look at the queue and its begin.
            _log.info("%s is not run here: %s", queued.kind, error, extra=fields)
        except Exception:  # noqa: BLE001 - one job that cannot be run must not end the others
            _log.exception("%s could not be run", queued.kind, extra=fields)
        finally:
            self._attempts.pop(job_id, None)
            self._tasks.pop(job_id, None)
            self._busy.pop(job_id, None)
            self._warnings.pop(job_id, None)
            self._on_change(job_id)

    async def _begin(self, queued: job_pb2.Job) -> Attempt:
        """Makes a job that waits this replica's, and an attempt that is yet to run.

        Raises:
            FailedPrecondition: It does not wait any more.
        """
        job_id = queued.job_id
        stored = await asyncio.to_thread(self._store.get, job_id)
        stored.job.CopyFrom(await asyncio.to_thread(self._store.begin, job_id))
        attempt = self._launch(self._kinds[queued.kind], stored, lambda report: self._note(job_id, report))
        self._attempts[job_id] = attempt
        if self._stopping:
            await attempt.suspend()
        self._on_change(job_id)
        fields = {"job_id": job_id, "run_id": queued.run_id}
        _log.info("%s begins, attempt %d", queued.kind, stored.job.attempt, extra=fields)
        return attempt

    async def _record(self, job_id: str, outcome: Outcome) -> job_pb2.Job:
        """Writes down how an attempt ended, once the database takes it."""
        while True:
            try:
                return await asyncio.to_thread(self._end, job_id, outcome)
            except DBAPIError as error:
                _log.warning("job %s has ended, but the database does not take it: %s", job_id, error.orig)
                if self._stopping:
                    raise
                await asyncio.sleep(_POLL_SECONDS)

    def _end(self, job_id: str, outcome: Outcome) -> job_pb2.Job:
        # Again, in case the database was away when they came.
        if warnings := self._warnings.get(job_id):
            self._store.warn(job_id, tuple(warnings))
        if isinstance(outcome, Succeeded):
            try:
                return self._store.succeed(job_id, outcome.outputs)
            except ResourceExhausted as error:
                return self._store.fail(job_id, status_of(error))
        if isinstance(outcome, Failed):
            return self._store.fail(job_id, _short(outcome.error))
        return self._store.suspend(job_id)

    async def _note(self, job_id: str, report: Report) -> None:
        try:
            if isinstance(report, Warned):
                warnings = self._warnings.setdefault(job_id, [])
                warnings.append(report.text)
                await asyncio.to_thread(self._store.warn, job_id, tuple(warnings))
            else:
                await asyncio.to_thread(self._store.progress, job_id, report)
        except (DBAPIError, FailedPrecondition) as error:
            # The work goes on; whether it is still ours the next renewal of its lease tells.
            _log.debug("a report of %s is not noted: %s", job_id, error)
        self._on_progress(job_id)


def _short(error: status_pb2.Status) -> status_pb2.Status:
    """An error that fits into an event, whatever an exception has said."""
    if error.ByteSize() <= _LONGEST_ERROR:
        return error
    return status_pb2.Status(code=error.code, message=f"{error.message[: _LONGEST_ERROR // 4]} [...]")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return

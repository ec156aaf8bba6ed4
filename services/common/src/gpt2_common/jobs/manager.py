"""The jobs of one service, for its calls and events: starts, lists, watches, cancels and resumes them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_common.database import poll_seconds
from gpt2_common.errors import FailedPrecondition, InvalidRequest, NotFound, Unavailable
from gpt2_common.identity import current_caller
from gpt2_common.jobs.attempt import Launcher
from gpt2_common.jobs.cancelled_runs import Cancellation, mark_cancelled, unmark_cancelled
from gpt2_common.jobs.checks import RequestChecks
from gpt2_common.jobs.corrections import Corrections, correct_job, require_correctable, write_corrections
from gpt2_common.jobs.creation import create_job
from gpt2_common.jobs.definition import JobKind, StartRequest
from gpt2_common.jobs.options import complete_options
from gpt2_common.jobs.rows import unpack_unparsed
from gpt2_common.jobs.run_rows import RunPlace
from gpt2_common.jobs.runner import JobRunner
from gpt2_common.jobs.store import FINAL, REPEATABLE, JobStore
from gpt2_common.settings import ServiceSettings

_log = logging.getLogger(__name__)
_PAGE_SIZE = 1000


class JobManager:
    """The jobs of one service.

    Args:
        store: Where they are stored.
        kinds: Kinds of job that the service runs.
        settings: The service's settings.
        on_change: Called after each change of state, such as to wake the relay.
        launch: Makes the attempts of jobs.
        checks: Validates requests.
    """

    def __init__(
        self,
        store: JobStore,
        kinds: Iterable[JobKind],
        settings: ServiceSettings,
        on_change: Callable[[], None],
        launch: Launcher,
        checks: RequestChecks,
    ) -> None:
        self.checks = checks
        self.store = store
        self.by_name: Mapping[str, JobKind] = {kind.name: kind for kind in kinds}
        self._on_change = on_change
        self._closed = False
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._runner = JobRunner(store, self.by_name, settings, self.changed, self._wake_watchers, launch)

    async def start(self, kind: str, request: StartRequest) -> job_pb2.Job:
        """Creates the job that a start call asks for, or finds it, whatever has become of its inputs since.

        Args:
            kind: The start call.
            request: Its request.

        Raises:
            InvalidRequest: Something is wrong with it; nothing was created. Others as `create_job`.
            Unavailable: The service is stopping.
        """
        if self._closed:
            raise Unavailable("the service is stopping: retry when it is back, or call another replica")
        if found := self.checks.check_request(kind, request):
            # All mistakes in one answer, those of the plan's stages too.
            in_plan, _ = await self.checks.check_plan(kind, request.job)
            raise InvalidRequest([*found, *in_plan])
        complete_options(request.job, kind)
        warnings: Sequence[str] = ()
        if not await self._exists(request.job.job_id):
            # A stage that an event starts was checked with the whole plan.
            if not request.job.plan.HasField("cause"):
                found, warnings = await self.checks.check_plan(kind, request.job)
            if found := found or await self.checks.check_inputs(kind, request):
                raise InvalidRequest(found)
        job = await asyncio.to_thread(create_job, self.store, kind, request, warnings)
        self.changed(job.job_id)
        return job

    async def _exists(self, job_id: str) -> bool:
        try:
            return bool(job_id) and bool(await self.get(job_id))
        except NotFound:
            return False

    async def get(self, job_id: str) -> job_pb2.Job:
        """Returns a job. Raises NotFound."""
        return (await asyncio.to_thread(self.store.get, job_id)).job

    async def list_jobs(
        self, run_id: str, states: Sequence[int], limit: int, before: int | None, whole: bool = False
    ) -> tuple[list[job_pb2.Job], int | None]:
        """Lists jobs; see JobStore.list_jobs."""
        return await asyncio.to_thread(self.store.list_jobs, run_id, states, limit, before, whole)

    async def list_runs(
        self, run_ids: Sequence[str], limit: int, after: RunPlace | None
    ) -> tuple[list[jobs_service_pb2.RunSummary], RunPlace | None]:
        """Lists runs with their jobs of this service; see JobStore.list_runs."""
        return await asyncio.to_thread(self.store.list_runs, run_ids, limit, after)

    async def watch(self, job_id: str, after_revision: int) -> AsyncIterator[job_pb2.Job]:
        """Yields the job whenever its revision is greater than the one before, until it has ended."""
        changed = asyncio.Event()
        self._watchers.setdefault(job_id, set()).add(changed)
        try:
            while True:
                changed.clear()
                job = await self.get(job_id)
                if job.revision > after_revision:
                    after_revision = job.revision
                    yield job
                if job.state in FINAL:
                    return
                # Changes by another replica are found by polling.
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), poll_seconds(self.store.engine))
        finally:
            self._watchers[job_id].discard(changed)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    async def cancel(self, job_id: str, reason: str) -> job_pb2.Job:
        """Requests the cancellation of a job. Another replica that runs it finds out when it renews its lease.

        Raises:
            NotFound, FailedPrecondition: There is no such job, or it has already ended otherwise.
        """
        job = await asyncio.to_thread(self.store.request_cancel, job_id, Cancellation(str(current_caller()), reason))
        self.changed(job_id)
        await self._runner.cancel(job_id)
        return job

    async def cancel_run(self, run_id: str, reason: str) -> list[job_pb2.Job]:
        """Cancels the jobs that a run has here, and keeps events from starting more of it. Returns those jobs."""
        cancellation = Cancellation(str(current_caller()), reason)
        await asyncio.to_thread(mark_cancelled, self.store.engine, self.store.service, run_id, cancellation)
        unfinished = [state for state in job_pb2.Job.State.values() if state not in FINAL]
        cancelled = []
        for job in await self._all_jobs(run_id, unfinished):
            try:
                cancelled.append(await self.cancel(job.job_id, reason))
            except FailedPrecondition as error:
                _log.info("it ended first: %s", error)
        return cancelled

    async def correct_run(
        self, run_id: str, corrections: Corrections, waiting: Sequence[job_pb2.Job], validate_only: bool
    ) -> None:
        """Changes requests of a run's stages that have not succeeded: all that are here, or none.

        Args:
            run_id: The run.
            corrections: Fields to change, by name of the stage; those of stages that are not here are left to others.
            waiting: Jobs of the run whose next stage is not known to have been started.
            validate_only: Only find out whether they are right.

        Raises:
            InvalidRequest, FailedPrecondition: A correction is wrong, or its stage cannot be corrected.
        """
        jobs = await self._all_jobs(run_id, ())
        require_correctable(jobs, waiting, corrections)
        corrected = []
        for job in jobs:
            if job.state in REPEATABLE:
                stored = await asyncio.to_thread(self.store.get, job.job_id)
                change = await correct_job(self.by_name[job.kind], stored, corrections, self.checks)
                corrected += [] if change is None else [change]
        if not validate_only:
            await asyncio.to_thread(write_corrections, self.store, corrected)

    async def continue_run(self, run_id: str) -> list[job_pb2.Job]:
        """Requeues the jobs of a run that failed or were cancelled. Returns those jobs.

        Raises:
            FailedPrecondition: The plan's request for a stage was wrong. Others as the start calls.
        """
        await asyncio.to_thread(unmark_cancelled, self.store.engine, self.store.service, run_id)
        jobs = await self._all_jobs(run_id, list(REPEATABLE))
        return [await self._start_again(job) for job in reversed(jobs)]

    async def run(self) -> None:
        """Runs jobs until `stop`; see JobRunner."""
        await self._runner.run()

    def close(self) -> None:
        """Refuses further start calls."""
        self._closed = True

    async def stop(self) -> None:
        """Suspends the jobs that run; see JobRunner."""
        await self._runner.stop()

    @property
    def kinds(self) -> Sequence[str]:
        """Names of the kinds of job that it runs."""
        return list(self.by_name)

    def running_jobs(self) -> int:
        """Number of jobs that run now."""
        return self._runner.running

    def changed(self, job_id: str) -> None:
        """Wakes the watchers of a job, the runner and the relay after a change of its state."""
        self._wake_watchers(job_id)
        self._runner.wake()
        self._on_change()

    async def _all_jobs(self, run_id: str, states: Sequence[int]) -> list[job_pb2.Job]:
        """All jobs of a run in some states, newest first, without the bulk of their plans."""
        jobs, before = await self.list_jobs(run_id, states, _PAGE_SIZE, None)
        while before is not None:
            older, before = await self.list_jobs(run_id, states, _PAGE_SIZE, before)
            jobs += older
        return jobs

    async def _start_again(self, job: job_pb2.Job) -> job_pb2.Job:
        stored = await asyncio.to_thread(self.store.get, job.job_id)
        if not stored.request or unpack_unparsed(stored.request) is not None:
            raise FailedPrecondition(
                f"stage {job.job_id} cannot be continued, as its request in the plan is wrong ({job.error.message}): "
                "give a correction of the stage",
                job_id=job.job_id,
            )
        request: Any = self.by_name[job.kind].request.FromString(stored.request)
        request.job.retry_failed = True
        if stored.job.HasField("plan"):
            request.job.plan.CopyFrom(stored.job.plan)
        return await self.start(job.kind, request)

    def _wake_watchers(self, job_id: str) -> None:
        for watcher in self._watchers.get(job_id, ()):
            watcher.set()

"""The jobs of one service as its calls and events see them: started, listed, watched, cancelled, continued."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from gpt2.jobs.v1 import job_pb2
from gpt2_common.errors import FailedPrecondition, InvalidRequest, Unavailable
from gpt2_common.jobs.attempt import Launcher
from gpt2_common.jobs.cancelled_runs import mark_cancelled, unmark_cancelled
from gpt2_common.jobs.creation import create_job
from gpt2_common.jobs.definition import JobKind, StartRequest
from gpt2_common.jobs.options import complete_options, job_options_problems
from gpt2_common.jobs.runner import JobRunner
from gpt2_common.jobs.store import FINAL, REPEATABLE, JobStore
from gpt2_common.settings import ServiceSettings

_log = logging.getLogger(__name__)
_POLL_SECONDS = 2.0
_LARGEST_PAGE = 1000

Starter = Callable[[Any], Awaitable[Any]]
"""A start call of the service itself: takes the request, checks it, starts the job."""


class JobManager:
    """The jobs of one service.

    Args:
        store: Where they are kept.
        kinds: Kinds of job that the service runs.
        settings: The service's settings.
        on_change: Called after each change of state, such as to wake the relay.
        launch: Makes the attempts of jobs.
    """

    def __init__(
        self,
        store: JobStore,
        kinds: Sequence[JobKind],
        settings: ServiceSettings,
        on_change: Callable[[], None],
        launch: Launcher,
    ) -> None:
        self.store = store
        self.by_name: Mapping[str, JobKind] = {kind.name: kind for kind in kinds}
        self._on_change = on_change
        self._closed = False
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._runner = JobRunner(store, self.by_name, settings, self.changed, self._wake_watchers, launch)

    async def start(self, kind: JobKind, request: StartRequest, problems: Sequence[tuple[str, str]]) -> job_pb2.Job:
        """Creates the job that a start call asks for, or finds it.

        Args:
            kind: What it asks for.
            request: The request.
            problems: What the service found wrong with it, as pairs of field and description.

        Raises:
            InvalidRequest: Something is wrong with it; nothing was created. Others as `create_job`.
            Unavailable: The service is stopping.
        """
        if self._closed:
            raise Unavailable(
                "the service is stopping, and takes no more: retry when it is back, or ask another replica"
            )
        found = [*job_options_problems(request.job, kind.name), *problems]
        if found:
            raise InvalidRequest(found)
        complete_options(request.job, kind.name)
        job = await asyncio.to_thread(create_job, self.store, kind.name, request)
        self.changed(job.job_id)
        return job

    async def get(self, job_id: str) -> job_pb2.Job:
        """Returns a job. Raises NotFound."""
        return (await asyncio.to_thread(self.store.get, job_id)).job

    async def page(
        self, run_id: str, states: Sequence[int], limit: int, before: int | None
    ) -> tuple[list[job_pb2.Job], int | None]:
        """Lists jobs; see JobStore.page."""
        return await asyncio.to_thread(self.store.page, run_id, states, limit, before)

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
                # Another replica may change the job too, which only the store can tell.
                await _wait(changed, _POLL_SECONDS)
        finally:
            self._watchers[job_id].discard(changed)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    async def cancel(self, job_id: str, reason: str) -> job_pb2.Job:
        """Asks a job to stop. The replica that runs it hears of it when it renews its lease, if it is not this one.

        Raises:
            NotFound, FailedPrecondition: There is no such job, or it has already ended otherwise.
        """
        job = await asyncio.to_thread(self.store.request_cancel, job_id, reason)
        self.changed(job_id)
        await self._runner.cancel(job_id)
        return job

    async def cancel_run(self, run_id: str, reason: str) -> list[job_pb2.Job]:
        """Cancels what a run has here, and keeps events from starting more of it. Returns the jobs that were told."""
        await asyncio.to_thread(mark_cancelled, self.store.engine, self.store.service, run_id, reason)
        unfinished = [state for state in job_pb2.Job.State.values() if state not in FINAL]
        told = []
        for job in await self._all(run_id, unfinished):
            try:
                told.append(await self.cancel(job.job_id, reason))
            except FailedPrecondition as error:
                _log.info("it ended first: %s", error)
        return told

    async def continue_run(self, run_id: str, starters: Mapping[str, Starter]) -> list[job_pb2.Job]:
        """Queues again what has failed, or was cancelled, of a run. Returns those jobs.

        Raises:
            FailedPrecondition: The plan's request for a stage was wrong. Others as the start calls.
        """
        await asyncio.to_thread(unmark_cancelled, self.store.engine, self.store.service, run_id)
        jobs = await self._all(run_id, list(REPEATABLE))
        return [await self._start_again(job, starters) for job in reversed(jobs)]

    async def run(self) -> None:
        """Runs jobs until `stop`; see JobRunner."""
        await self._runner.run()

    def close(self) -> None:
        """Takes no more start calls."""
        self._closed = True

    async def stop(self) -> None:
        """Puts the jobs at work aside; see JobRunner."""
        await self._runner.stop()

    @property
    def kinds(self) -> Sequence[str]:
        """Names of the kinds of job that it runs."""
        return list(self.by_name)

    def running_jobs(self) -> int:
        """How many jobs are at work now."""
        return self._runner.running

    def changed(self, job_id: str) -> None:
        """Tells all who should know that a job has changed its state."""
        self._wake_watchers(job_id)
        self._runner.wake()
        self._on_change()

    async def _all(self, run_id: str, states: Sequence[int]) -> list[job_pb2.Job]:
        """All jobs of a run in some states, newest first."""
        jobs, before = await self.page(run_id, states, _LARGEST_PAGE, None)
        while before is not None:
            older, before = await self.page(run_id, states, _LARGEST_PAGE, before)
            jobs += older
        return jobs

    async def _start_again(self, job: job_pb2.Job, starters: Mapping[str, Starter]) -> job_pb2.Job:
        stored = await asyncio.to_thread(self.store.get, job.job_id)
        if not stored.request:
            raise FailedPrecondition(
                f"stage {job.job_id} cannot be continued, as its request in the plan is wrong ({job.error.message}): "
                "start it yourself under another job_id, with the stages after it as its plan",
                job_id=job.job_id,
            )
        request: Any = self.by_name[job.kind].request.FromString(stored.request)
        request.job.retry_failed = True
        answer = await starters[job.kind](request)
        again: job_pb2.Job = answer.job
        return again

    def _wake_watchers(self, job_id: str) -> None:
        for watcher in self._watchers.get(job_id, ()):
            watcher.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return

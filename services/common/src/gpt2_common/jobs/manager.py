"""Runs the jobs of one service: takes what waits, keeps to the limits, brings each to its end, tells who watches."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from google.rpc import code_pb2, status_pb2

from gpt2.jobs.v1 import job_pb2
from gpt2_common.errors import FailedPrecondition, InvalidRequest
from gpt2_common.jobs.child import Child, Failed, Outcome, Succeeded
from gpt2_common.jobs.definition import JobKind, StartRequest, job_options_problems
from gpt2_common.jobs.store import FINAL, JobStore
from gpt2_common.settings import ServiceSettings

_log = logging.getLogger(__name__)
_POLL_SECONDS = 2.0


class JobManager:
    """The jobs of one service.

    Args:
        store: Where they are kept.
        kinds: Kinds of job that the service runs.
        settings: The service's settings.
        on_change: Called after each change of state, such as to wake the relay.
    """

    def __init__(
        self, store: JobStore, kinds: Sequence[JobKind], settings: ServiceSettings, on_change: Callable[[], None]
    ) -> None:
        self._store = store
        self._kinds: Mapping[str, JobKind] = {kind.name: kind for kind in kinds}
        self._settings = settings
        self._on_change = on_change
        self._children: dict[str, Child] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._busy: dict[str, str] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    async def start(self, kind: JobKind, request: StartRequest, problems: Sequence[tuple[str, str]]) -> job_pb2.Job:
        """Creates the job that a start call asks for, or finds it.

        Args:
            kind: What it asks for.
            request: The request.
            problems: What the service found wrong with it, as pairs of field and description.

        Raises:
            InvalidRequest: Something is wrong with it; nothing was created. Others as JobStore.create.
        """
        found = [*job_options_problems(request.job), *problems]
        if found:
            raise InvalidRequest(found)
        job = await asyncio.to_thread(self._store.create, kind.name, request)
        self._changed(job.job_id)
        return job

    async def get(self, job_id: str) -> job_pb2.Job:
        """Returns a job. Raises NotFound."""
        return (await asyncio.to_thread(self._store.get, job_id)).job

    async def page(
        self, run_id: str, states: Sequence[int], limit: int, before: int | None
    ) -> tuple[list[job_pb2.Job], int | None]:
        """Lists jobs; see JobStore.page."""
        return await asyncio.to_thread(self._store.page, run_id, states, limit, before)

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
        """Asks a job to stop. What happens then is in `_run_job` and in Child.cancel.

        Raises:
            NotFound, FailedPrecondition: There is no such job, or it has already ended otherwise.
        """
        job = await asyncio.to_thread(self._store.request_cancel, job_id, reason)
        self._changed(job_id)
        child = self._children.get(job_id)
        if child is not None:
            await child.cancel()
        return job

    async def run(self) -> None:
        """Takes up what an earlier process of this service left, then runs jobs until `stop`."""
        for job_id in await asyncio.to_thread(self._store.running):
            job = await asyncio.to_thread(self._store.suspend, job_id)
            _log.info("job %s is taken up again", job_id, extra={"job_id": job_id, "run_id": job.run_id})
        while not self._stopping:
            self._wake.clear()
            for job in await asyncio.to_thread(self._store.queued):
                if not self._stopping and self._has_place(job):
                    self._busy[job.job_id] = job.kind
                    self._tasks[job.job_id] = asyncio.create_task(self._run_job(job), name=f"job {job.job_id}")
            await _wait(self._wake, _POLL_SECONDS)

    async def stop(self) -> None:
        """Stops taking jobs, and tells those at work to stop where they can go on later. Returns when they have."""
        self._stopping = True
        self._wake.set()
        await asyncio.gather(*(child.suspend() for child in list(self._children.values())))
        await asyncio.gather(*list(self._tasks.values()), return_exceptions=True)

    @property
    def kinds(self) -> Sequence[str]:
        """Names of the kinds of job that it runs."""
        return list(self._kinds)

    def running_jobs(self) -> int:
        """How many jobs are at work now."""
        return len(self._tasks)

    def _has_place(self, job: job_pb2.Job) -> bool:
        if job.job_id in self._tasks or job.kind not in self._kinds:
            return False
        busy = sum(kind == job.kind for kind in self._busy.values())
        return busy < self._kinds[job.kind].concurrency

    async def _run_job(self, queued: job_pb2.Job) -> None:
        job_id = queued.job_id
        fields = {"job_id": job_id, "run_id": queued.run_id}
        try:
            stored = await asyncio.to_thread(self._store.get, job_id)
            if stored.job.attempt >= self._settings.max_attempts:
                await asyncio.to_thread(self._store.fail, job_id, _too_many_attempts(stored.job.attempt))
                return
            child = Child(self._kinds[queued.kind], stored, lambda progress: self._note_progress(job_id, progress))
            self._children[job_id] = child
            job = await asyncio.to_thread(self._store.begin, job_id)
            stored.job.CopyFrom(job)
            self._changed(job_id)
            _log.info("%s begins, attempt %d", queued.kind, job.attempt, extra=fields)
            outcome = await child.run(self._settings.cancel_grace_seconds)
            ended = await asyncio.to_thread(self._end, job_id, outcome)
            _log.info("%s is %s", queued.kind, job_pb2.Job.State.Name(ended.state), extra=fields)
        except FailedPrecondition as error:
            # It was cancelled between our look at the queue and its begin.
            _log.info("%s was not run: %s", queued.kind, error, extra=fields)
        except Exception:  # noqa: BLE001 - one job that cannot be run must not end the others
            _log.exception("%s could not be run", queued.kind, extra=fields)
        finally:
            self._children.pop(job_id, None)
            self._tasks.pop(job_id, None)
            self._busy.pop(job_id, None)
            self._changed(job_id)

    def _end(self, job_id: str, outcome: Outcome) -> job_pb2.Job:
        if isinstance(outcome, Succeeded):
            return self._store.succeed(job_id, outcome.outputs)
        if isinstance(outcome, Failed):
            return self._store.fail(job_id, outcome.error)
        return self._store.suspend(job_id)

    async def _note_progress(self, job_id: str, progress: job_pb2.Progress) -> None:
        await asyncio.to_thread(self._store.progress, job_id, progress)
        for watcher in self._watchers.get(job_id, ()):
            watcher.set()

    def _changed(self, job_id: str) -> None:
        for watcher in self._watchers.get(job_id, ()):
            watcher.set()
        self._wake.set()
        self._on_change()


def _too_many_attempts(attempts: int) -> status_pb2.Status:
    return status_pb2.Status(
        code=code_pb2.ABORTED,
        message=f"interrupted in each of {attempts} attempts, the limit of GPT2_MAX_ATTEMPTS: "
        "see the service's log for why, then start it again with retry_failed",
    )


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return

"""Changes as they come: jobs, labels and services that go away, for everyone who has the page open.

Kafka's events (event_reader.py) tell of changes of state at once; progress, and everything while Kafka is away, is
asked for every second, of the jobs that have not ended. Nothing is asked while nobody listens.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client import NotFoundError, ServiceClient
from gpt2_orchestration.dashboard.describing import Json, describe_job, describe_troubles
from gpt2_orchestration.event_log import event_message
from gpt2_orchestration.job_states import UNFINISHED_STATES
from gpt2_orchestration.services import Services

_POLL_SECONDS = 1.0
_NEWEST = 20
_MOST_UNFINISHED = 200
_WAITING_CHANGES = 1000
"""Changes that a slow listener may be behind; then it is told to read everything again."""

_log = logging.getLogger(__name__)

JobKey = tuple[str, str]
"""Service and job id."""


class Changes:
    """Hears of changes, and tells all listeners. Lives on one event loop; only `hear_event` is for other threads.

    Args:
        services: Whom to ask.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._listeners: set[asyncio.Queue[str | None]] = set()
        self._revisions: dict[JobKey, int] = {}
        self._unfinished: set[JobKey] = set()
        self._troubles: list[Json] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[asyncio.Queue[str | None]]:
        """Gives a queue of server-sent events; None ends it."""
        queue: asyncio.Queue[str | None] = asyncio.Queue(_WAITING_CHANGES)
        queue.put_nowait(_event("troubles", self._troubles))
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def end(self) -> None:
        """Ends what all listeners hear."""
        for queue in self._listeners:
            _finish(queue)

    def hear_event(self, kind: str, value: bytes) -> None:
        """Takes the event of a record: its CloudEvents type, and its value. What is no event of ours is left alone."""
        message = event_message(kind, value)
        if isinstance(message, events_pb2.JobStateChanged):
            self._hear_job(message.job)
        elif isinstance(message, events_pb2.ModelLabelChanged):
            self._tell("label", {"name": message.model_name, "label": message.label, "version": message.version})

    async def ask_for_ever(self) -> None:
        """Asks the services every second while anybody listens."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if not self._listeners:
                # What was known is old when somebody comes.
                self._revisions.clear()
                self._unfinished.clear()
                continue
            try:
                await self._ask()
            except Exception:  # noqa: BLE001 - the page must not stop for one answer that it cannot read
                _log.exception("asking the services for changes failed; it is tried again")

    async def _ask(self) -> None:
        before = frozenset(self._unfinished)
        answers = await asyncio.to_thread(self._services.ask, lambda client: _recent_jobs(client, before))
        for name, jobs in answers.found.items():
            self._unfinished = {key for key in self._unfinished if key[0] != name}
            for job in jobs:
                self._hear_job(job)
        troubles = describe_troubles(answers.errors)
        if troubles != self._troubles:
            self._troubles = troubles
            self._tell("troubles", troubles)

    def _hear_job(self, job: job_pb2.Job) -> None:
        key = (job.service, job.job_id)
        if job.state in UNFINISHED_STATES:
            self._unfinished.add(key)
        if job.revision > self._revisions.get(key, 0):
            self._revisions[key] = job.revision
            self._tell("job", describe_job(job))

    def _tell(self, name: str, content: Json | list[Json]) -> None:
        text = _event(name, content)
        for queue in tuple(self._listeners):
            try:
                queue.put_nowait(text)
            except asyncio.QueueFull:
                # It comes again, and reads everything when it does.
                self._listeners.discard(queue)
                _finish(queue)


def _finish(queue: asyncio.Queue[str | None]) -> None:
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)


def _recent_jobs(client: ServiceClient, unfinished: frozenset[JobKey]) -> list[job_pb2.Job]:
    """Jobs that may have changed: the newest, those that have not ended, and those that had not when last asked."""
    jobs = {job.job_id: job for job in client.jobs("", limit=_NEWEST)}
    jobs |= {job.job_id: job for job in client.jobs("", UNFINISHED_STATES, limit=_MOST_UNFINISHED)}
    for service, job_id in unfinished:
        if service == client.service and job_id not in jobs:
            with suppress(NotFoundError):
                jobs[job_id] = client.get(job_id)
    return list(jobs.values())


def _event(name: str, content: Json | list[Json]) -> str:
    return f"event: {name}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"

"""Live changes of jobs, labels and services, for every open page.

Kafka's events (event_reader.py) bring state changes at once; progress is polled every second while there are unfinished
jobs. Otherwise the services are polled every five seconds, which finds services that do not answer and what was missed
while Kafka was unavailable. Nothing is polled without a listener.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client.event_log import event_message
from gpt2_orchestration.client.jobs import UNFINISHED_STATES
from gpt2_orchestration.client.service_client import NotFoundError, ServiceClient
from gpt2_orchestration.client.services import Services
from gpt2_orchestration.dashboard.serialization import Json, describe_job, describe_troubles

_POLL_SECONDS = 1.0
_QUIET_POLL_SECONDS = 5.0
_NEWEST = 20
_MAX_UNFINISHED = 200
_MAX_QUEUED_CHANGES = 1000
"""Events queued for a slow listener; beyond that it reloads everything."""

_log = logging.getLogger(__name__)

JobKey = tuple[str, str]
"""Service and job id."""


class Changes:
    """Collects changes and sends them to all listeners. Not thread-safe, except for `receive_event`.

    Args:
        services: The services to poll.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._listeners: set[asyncio.Queue[str | None]] = set()
        self._revisions: dict[JobKey, int] = {}
        self._unfinished: set[JobKey] = set()
        # Set when a listener subscribes, and when an unfinished job is found.
        self._awake = asyncio.Event()
        self._troubles: list[Json] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[asyncio.Queue[str | None]]:
        """Subscribes: yields a queue of server-sent events, which None ends."""
        queue: asyncio.Queue[str | None] = asyncio.Queue(_MAX_QUEUED_CHANGES)
        queue.put_nowait(_event("troubles", self._troubles))
        self._listeners.add(queue)
        self._awake.set()
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def end(self) -> None:
        """Ends the streams of all listeners."""
        for queue in self._listeners:
            _finish(queue)

    def receive_event(self, kind: str, value: bytes) -> None:
        """Processes the CloudEvents type and value of a Kafka record; ignores events of other types."""
        if not self._listeners:
            return
        message = event_message(kind, value)
        if isinstance(message, events_pb2.JobStateChanged):
            self._receive_job(message.job)
        elif isinstance(message, events_pb2.ModelLabelChanged):
            self._send("label", {"name": message.model_name, "label": message.label, "version": message.version})

    async def poll_forever(self) -> None:
        """Polls the services while there is a listener, more often while jobs are unfinished."""
        while True:
            await self._pause()
            if not self._listeners:
                # It would be stale for the next listener.
                self._revisions.clear()
                self._unfinished.clear()
                continue
            try:
                await self._ask()
            except Exception:  # noqa: BLE001 - the page must not stop for one answer that it cannot read
                _log.exception("polling the services for changes failed; retrying")

    async def _pause(self) -> None:
        """Waits for a listener; then for an unfinished job or the idle interval; and always for the poll interval."""
        if not self._listeners:
            await self._awake.wait()
        elif not self._unfinished:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), _QUIET_POLL_SECONDS - _POLL_SECONDS)
        self._awake.clear()
        await asyncio.sleep(_POLL_SECONDS)

    async def _ask(self) -> None:
        before = frozenset(self._unfinished)
        answers = await asyncio.to_thread(self._services.ask, lambda client: _recent_jobs(client, before))
        for name, jobs in answers.found.items():
            self._unfinished = {key for key in self._unfinished if key[0] != name}
            for job in jobs:
                self._receive_job(job)
        troubles = describe_troubles(answers.errors)
        if troubles != self._troubles:
            self._troubles = troubles
            self._send("troubles", troubles)

    def _receive_job(self, job: job_pb2.Job) -> None:
        key = (job.service, job.job_id)
        if job.state in UNFINISHED_STATES:
            self._unfinished.add(key)
            self._awake.set()
        if job.revision > self._revisions.get(key, 0):
            self._revisions[key] = job.revision
            self._send("job", describe_job(job))

    def _send(self, name: str, content: Json | list[Json]) -> None:
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
    jobs |= {job.job_id: job for job in client.jobs("", UNFINISHED_STATES, limit=_MAX_UNFINISHED)}
    for service, job_id in unfinished:
        if service == client.service and job_id not in jobs:
            with suppress(NotFoundError):
                jobs[job_id] = client.get(job_id)
    return list(jobs.values())


def _event(name: str, content: Json | list[Json]) -> str:
    return f"event: {name}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"

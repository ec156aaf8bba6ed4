"""The reconciler: lets a run continue when the event that should have started its next stage was lost.

The job stores hold the truth; Kafka's topic can be deleted, truncated or lost with a disk. So the service that has
ended a stage checks whether the next one has started, and publishes the event again, with the same id and exponential
backoff, until it has. An event that was received before has no effect.
"""

import asyncio
import logging
import threading
import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import catalogue
from gpt2_common.database import reading
from gpt2_common.errors import PeerUnavailable, PipelineError
from gpt2_common.events.outbox import republish
from gpt2_common.jobs.handovers import (
    Handover,
    complete_handover,
    find_handover,
    list_due_handovers,
    postpone_handover,
    record_handover,
)
from gpt2_common.jobs.options import next_job_id
from gpt2_common.jobs.rows import job_event, select_job
from gpt2_common.jobs.store import JobStore
from gpt2_common.lease import Lease
from gpt2_common.peers import Peers
from gpt2_contracts.events import CloudEvent

_log = logging.getLogger(__name__)
_MAX_PAUSE_SECONDS = 15.0
_MIN_PAUSE_SECONDS = 0.5
_MAX_INTERVAL_SECONDS = 3600.0
_MAX_DOUBLINGS = 12
_BATCH = 100
_ASK_SECONDS = 10.0

AskPeer = Callable[[str, str], bool | None]
"""Whether the service that takes a start call has a job of an id; None if it does not answer."""


def ask_peers(peers: Peers, loop: asyncio.AbstractEventLoop) -> AskPeer:
    """Asks the other services, from a thread other than that of the event loop of their channels."""

    def ask(start: str, job_id: str) -> bool | None:
        finding = asyncio.run_coroutine_threadsafe(peers.find_job(catalogue().stages[start].service, job_id), loop)
        try:
            return finding.result(_ASK_SECONDS) is not None
        except (PeerUnavailable, TimeoutError):
            finding.cancel()
            return None

    return ask


class Reconciler:
    """Publishes events again that have had no effect, in a background thread, until it is stopped.

    Args:
        store: The jobs.
        kinds: Start calls that this service takes itself.
        ask_peer: Asks another service whether it has a job.
        seconds: Time after a stage's end in which its event normally takes effect.
        lease: Held by the one replica that does the work.
        on_publish: Called when an event was added to the outbox.
    """

    def __init__(
        self,
        store: JobStore,
        kinds: Collection[str],
        ask_peer: AskPeer,
        seconds: float,
        lease: Lease,
        on_publish: Callable[[], None],
    ) -> None:
        self._store = store
        self._kinds = kinds
        self._ask_peer = ask_peer
        self._seconds = seconds
        self._lease = lease
        self._on_publish = on_publish
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Stops the thread if it was started. Blocks until it has stopped, or for the timeout."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
            self._release()

    def reconcile(self) -> list[job_pb2.Job]:
        """Handles what is due, once. Returns the jobs whose event was published again. Raises DBAPIError."""
        published = []
        while due := list_due_handovers(self._store.engine, self._store.service, self._seconds, _BATCH):
            if self._stopping.is_set() or not self._lease.hold():
                break
            for handover in due:
                try:
                    job = self._reconcile(handover)
                except PipelineError:
                    _log.exception("the handover of job %s failed: it is postponed", handover.job_id)
                    self._postpone(handover)
                    continue
                if job is not None:
                    published.append(job)
        return published

    def publish_run(self, run_id: str) -> list[job_pb2.Job]:
        """Publishes at once the events that a run may wait for. Returns their jobs. Raises DBAPIError."""
        handovers = [self._handover(job) for job in self._succeeded(run_id)]
        return [
            job for handover in handovers if handover is not None and (job := self._reconcile(handover)) is not None
        ]

    def waiting_jobs(self, run_id: str) -> list[job_pb2.Job]:
        """Lists jobs of a run whose next stage is not known to have started. Changes nothing. Raises DBAPIError."""
        jobs = self._succeeded(run_id)
        with reading(self._store.engine) as connection:
            waiting = [job for job in jobs if find_handover(connection, self._store.service, job.job_id)]
        return [job for job in waiting if not self._next_is_started(job)]

    def _succeeded(self, run_id: str) -> list[job_pb2.Job]:
        """Jobs of a run that have succeeded and have stages after them."""
        jobs, before = self._store.list_jobs(run_id, [job_pb2.Job.STATE_SUCCEEDED])
        while before is not None:
            older, before = self._store.list_jobs(run_id, [job_pb2.Job.STATE_SUCCEEDED], before=before)
            jobs += older
        return [job for job in jobs if job.plan.stages]

    def _handover(self, job: job_pb2.Job) -> Handover | None:
        """Returns the handover of a job that has succeeded; None if its next stage is known to have started."""
        with self._store.engine.begin() as connection:
            found = find_handover(connection, self._store.service, job.job_id)
        # Earlier versions of the service recorded none.
        if found is None and self._next_is_started(job) is False:
            with self._store.engine.begin() as connection:
                record_handover(connection, job, str(uuid.uuid4()))
                found = find_handover(connection, self._store.service, job.job_id)
        return found

    def _reconcile(self, handover: Handover) -> job_pb2.Job | None:
        """Completes a handover; if its next stage has not started, publishes its event again and returns the job."""
        job = self._store.get(handover.job_id).job
        if self._next_is_started(job):
            complete_handover(self._store.engine, self._store.service, handover.job_id)
            return None
        with self._store.engine.begin() as connection:
            added = republish(connection, self._event(handover, job))
            interval = min(self._seconds * 2 ** min(handover.repeats, _MAX_DOUBLINGS), _MAX_INTERVAL_SECONDS)
            postpone_handover(connection, self._store.service, handover.job_id, interval, repeated=added)
        if not added:
            return None
        fields = {"job_id": job.job_id, "run_id": job.run_id}
        _log.info(
            "the event of %s is published again: %s is not known to have started",
            job.job_id,
            next_job_id(job),
            extra=fields,
        )
        self._on_publish()
        return job

    def _postpone(self, handover: Handover) -> None:
        with self._store.engine.begin() as connection:
            postpone_handover(connection, self._store.service, handover.job_id, _MAX_INTERVAL_SECONDS, repeated=False)

    def _next_is_started(self, job: job_pb2.Job) -> bool | None:
        """Whether the stage after a job has started; None if its service does not answer."""
        start, job_id = job.plan.stages[0].start, next_job_id(job)
        if start not in self._kinds:
            return self._ask_peer(start, job_id)
        with reading(self._store.engine) as connection:
            return select_job(connection, self._store.service, job_id) is not None

    def _event(self, handover: Handover, job: job_pb2.Job) -> CloudEvent:
        message = events_pb2.JobStateChanged(job=job, previous_state=job_pb2.Job.STATE_RUNNING)
        event = job_event(self._store.service, job, message)
        return replace(event, id=handover.event_id, time=job.end_time.ToDatetime(UTC))

    def _run(self) -> None:
        pause = min(max(self._seconds / 4, _MIN_PAUSE_SECONDS), _MAX_PAUSE_SECONDS)
        while not self._stopping.wait(pause):
            try:
                self.reconcile()
            except DBAPIError as error:
                _log.warning("waiting runs are not reconciled, as the database does not answer: %s", error.orig)
            except Exception:  # noqa: BLE001 - one run that cannot be read must not stop the others
                _log.exception("waiting runs are not reconciled")

    def _release(self) -> None:
        try:
            self._lease.release()
        except sql.exc.SQLAlchemyError as error:
            _log.debug("the reconciler's lease is not released, and expires: %s", error)

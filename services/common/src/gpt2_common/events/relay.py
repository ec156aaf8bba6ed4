"""The relay: publishes the events of the outbox to Kafka, at least once and in order within each key.

It runs in a thread, as kafka-python blocks. While Kafka is unavailable, for hours if need be, the outbox keeps them.
"""

import logging
import threading
from collections.abc import Sequence

import sqlalchemy as sql
from kafka import KafkaProducer
from kafka.errors import KafkaError

from gpt2_common.database import poll_seconds
from gpt2_common.events.outage_log import OutageLog
from gpt2_common.events.outbox import PendingEvent, list_pending_events, remove_published
from gpt2_common.events.producer import SEND_SECONDS, close_producer, connect_producer
from gpt2_common.events.topics import ensure_topic
from gpt2_common.failpoints import failpoint
from gpt2_common.lease import Lease

_log = logging.getLogger(__name__)

_BATCH = 200
_SHARED_POLL_SECONDS = 1.0
_RETRY_SECONDS = 2.0


class OutboxRelay:
    """Publishes the events of one source until it is stopped.

    Args:
        engine: Database with the outbox.
        source: Source whose events to publish.
        bootstrap_servers: Kafka brokers, separated by commas.
        topic: Topic to publish to.
        lease: Of several replicas, the one that holds it publishes, so that the events keep their order; also those of
            the others, within a second.
    """

    def __init__(self, engine: sql.Engine, source: str, bootstrap_servers: str, topic: str, lease: Lease) -> None:
        self._lease = lease
        self._engine = engine
        self._poll_seconds = poll_seconds(engine, _SHARED_POLL_SECONDS)
        self._source = source
        self._servers = bootstrap_servers
        self._topic = topic
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-relay", daemon=True)
        self._producer: KafkaProducer | None = None
        self._outages = OutageLog(
            _log, (KafkaError, OSError, ValueError, sql.exc.SQLAlchemyError), "events are published again"
        )
        # Positions of what Kafka has and the outbox still holds.
        self._published: set[int] = set()

    def start(self) -> None:
        """Starts publishing. Does not wait for the broker."""
        self._thread.start()

    def wake(self) -> None:
        """Announces that an event was committed. May be called from any thread."""
        self._wake.set()

    def stop(self, timeout_seconds: float) -> None:
        """Publishes the pending events if the broker takes them, and stops. Blocks until then or the timeout."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.is_set()
            reached = self._publish_all()
            if stopping:
                break
            if reached:
                self._wake.wait(self._poll_seconds)
                self._wake.clear()
            else:
                self._stopping.wait(_RETRY_SECONDS)
        self._close_producer()
        self._release()

    def _publish_all(self) -> bool:
        """Publishes the pending events. Returns False after a failure of any kind, which is retried."""
        try:
            while self._publish_batch():
                pass
        except Exception as error:  # noqa: BLE001 - if this thread died, events would wait until the next start
            self._note_failure(error)
            self._close_producer()
            return False
        self._outages.note_success()
        return True

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, sql.exc.SQLAlchemyError):
            why = f"the database does not answer ({getattr(error, 'orig', error)})"
        else:
            why = (
                f"Kafka at {self._servers} does not take them ({error!r}): "
                "start the broker, or set GPT2_KAFKA_BOOTSTRAP_SERVERS to its address"
            )
        self._outages.note_failure(error, f"events wait in the outbox, as {why}")

    def _publish_batch(self) -> bool:
        """Publishes the oldest events, where this replica holds the lease. Returns whether there were any."""
        if not self._lease.hold():
            return False
        waiting = list_pending_events(self._engine, self._source, _BATCH, self._published)
        if not waiting:
            self._remove_published()
            return False
        producer = self._connected_producer()
        failure: Exception | None = None
        # With a slow broker, the lease must not expire in the middle.
        while waiting and failure is None and self._lease.hold():
            # One event of each key at a time: one that fails cannot be overtaken by the next of its key.
            heads, waiting = _heads(waiting)
            published, failure = self._send(producer, heads)
            self._published.update(published)
        if failure is not None:
            raise failure
        if len(self._published) >= _BATCH:
            self._remove_published()
        return True

    def _remove_published(self) -> None:
        """Removes from the outbox what Kafka has: when nothing is pending any more, or in large batches."""
        if self._published:
            failpoint("before-outbox-removal")
            remove_published(self._engine, self._published)
            self._published.clear()

    def _send(self, producer: KafkaProducer, heads: Sequence[PendingEvent]) -> tuple[list[int], Exception | None]:
        sent = [
            (
                head.position,
                producer.send(
                    self._topic, key=head.event.key.encode(), value=head.event.data, headers=head.event.headers()
                ),
            )
            for head in heads
        ]
        producer.flush(SEND_SECONDS)
        published: list[int] = []
        failure: Exception | None = None
        for position, future in sent:
            try:
                future.get(timeout=SEND_SECONDS)
                published.append(position)
            except KafkaError as error:
                failure = error
        return published, failure

    def _connected_producer(self) -> KafkaProducer:
        if self._producer is None:
            ensure_topic(self._servers, self._topic)
            self._producer = connect_producer(self._servers)
        return self._producer

    def _release(self) -> None:
        try:
            self._lease.release()
        except sql.exc.SQLAlchemyError as error:
            _log.debug("the relay's lease is left to end by itself: %s", error)

    def _close_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            close_producer(producer)


def _heads(waiting: Sequence[PendingEvent]) -> tuple[list[PendingEvent], list[PendingEvent]]:
    """Splits events into the first of each key, and the rest."""
    heads: dict[str, PendingEvent] = {}
    rest = []
    for item in waiting:
        if item.event.key in heads:
            rest.append(item)
        else:
            heads[item.event.key] = item
    return list(heads.values()), rest

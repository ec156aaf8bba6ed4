"""The consumer: hands each event to its handler, at least once, and commits its offset after that.

It runs in a thread of its own, as kafka-python blocks. Handlers are short, work that takes long is a job; so the group
hears from its members however long jobs run. What a handler cannot take now is brought again later, while other
partitions go on; what it can never take goes to the dead letters, so that it does not stop those behind it.

Source: kafka-python has lost consumers for good when brokers went away (its issues 1477 and 2422). So a consumer that
has no partitions, or records to read and reads none, is replaced after a while.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from gpt2_common.events.cloudevent import CloudEvent
from gpt2_common.events.dead_letters import DeadLetters
from gpt2_common.events.topics import LONGEST_BACKOFF_MILLIS, ensure_topic
from gpt2_common.failpoints import failpoint

_log = logging.getLogger(__name__)
_POLL_MILLIS = 500
_MOST_RECORDS = 100
_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 30.0
_RECONNECT_SECONDS = 2.0
_SESSION_MILLIS = 15_000
# More than a session: a member that was killed keeps the others waiting for as long as its session lasts.
_STALLED_SECONDS = 45.0


class Busy(Exception):
    """A handler cannot take an event now, through no fault of the event: it is brought again."""


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """What to consume, and as whom."""

    bootstrap_servers: str
    topic: str
    group: str
    instance_id: str
    """Makes the membership static; empty: it is not."""
    max_poll_seconds: float


class EventConsumer:
    """Consumes a topic until it is stopped.

    Args:
        subscription: What, and as whom.
        handle: Takes an event. Raises Busy when it is to be brought again; any other error makes it a dead letter.
    """

    def __init__(self, subscription: Subscription, handle: Callable[[CloudEvent], None]) -> None:
        self._subscription = subscription
        self._handle = handle
        self._dead_letters = DeadLetters(subscription.bootstrap_servers, subscription.topic, subscription.group)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="event-consumer", daemon=True)
        self._retries: dict[TopicPartition, _Retry] = {}
        self._reachable = True

    def start(self) -> None:
        """Begins to consume. Does not wait for the broker."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Stops after the event at hand. Blocks until then or the timeout."""
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._consume()
            except Exception as error:  # noqa: BLE001 - if this thread died, the service would start no stage any more
                self._note_failure(error)
                self._stopping.wait(_RECONNECT_SECONDS)
        self._dead_letters.close()

    def _note_failure(self, error: Exception) -> None:
        """Says once why no events come."""
        expected = isinstance(error, KafkaError | OSError | ValueError | AssertionError)
        if self._reachable or not expected:
            why = "no events are received, as Kafka does not give them (%r): will try again"
            _log.warning(why, error, exc_info=None if expected else error)
        self._reachable = False

    def _note_reachable(self) -> None:
        if not self._reachable:
            _log.info("Kafka gives events again")
        self._reachable = True

    def _consume(self) -> None:
        """Consumes with one consumer of kafka-python, until it fails, stalls or is to stop."""
        ensure_topic(self._subscription.bootstrap_servers, self._subscription.topic)
        consumer = self._connect()
        try:
            consumer.subscribe([self._subscription.topic])
            self._retries.clear()
            watch = _Watch()
            self._note_reachable()
            while not self._stopping.is_set():
                self._resume_due(consumer)
                batches = consumer.poll(timeout_ms=_POLL_MILLIS, max_records=_MOST_RECORDS)
                self._take(consumer, batches)
                if watch.is_stalled(consumer, bool(batches)):
                    _log.warning("the consumer is replaced, as it reads nothing")
                    return
        finally:
            consumer.close(autocommit=False)

    def _connect(self) -> KafkaConsumer:
        subscription = self._subscription
        return KafkaConsumer(
            bootstrap_servers=subscription.bootstrap_servers,
            group_id=subscription.group,
            group_instance_id=subscription.instance_id or None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=_SESSION_MILLIS,
            heartbeat_interval_ms=3_000,
            reconnect_backoff_max_ms=LONGEST_BACKOFF_MILLIS,
            max_poll_interval_ms=max(int(subscription.max_poll_seconds * 1000), 1_000),
        )

    def _take(self, consumer: KafkaConsumer, batches: Mapping[TopicPartition, list[Any]]) -> None:
        """Handles what was read, and commits how far, without waiting for the broker.

        Where a commit is lost the next one covers it, or the events come again and have no effect.
        """
        taken = {partition: self._take_records(consumer, partition, records) for partition, records in batches.items()}
        offsets = {
            partition: OffsetAndMetadata(last.offset + 1, "", getattr(last, "leader_epoch", -1))
            for partition, last in taken.items()
            if last is not None
        }
        if offsets:
            failpoint("before-offset-commit")
            consumer.commit_async(offsets)

    def _take_records(self, consumer: KafkaConsumer, partition: TopicPartition, records: list[Any]) -> Any:
        """Handles the records of one partition. Returns the last that was; None when none was."""
        last = None
        for record in records:
            if self._stopping.is_set():
                break
            try:
                self._take_one(record)
            except Busy as busy:
                self._retry_later(consumer, partition, record.offset, busy)
                break
            last = record
            self._retries.pop(partition, None)
        return last

    def _take_one(self, record: Any) -> None:
        try:
            self._handle(CloudEvent.from_record(record.headers, record.value))
        except Busy:
            raise
        except Exception as error:  # noqa: BLE001 - one event that cannot be handled must not stop those behind it
            _log.exception("offset %d of partition %d is put aside", record.offset, record.partition)
            self._dead_letters.add(record, error, traceback.format_exc())

    def _retry_later(self, consumer: KafkaConsumer, partition: TopicPartition, offset: int, why: Busy) -> None:
        last = self._retries.get(partition)
        seconds = min(last.seconds * 2, _LAST_RETRY_SECONDS) if last else _FIRST_RETRY_SECONDS
        self._retries[partition] = _Retry(time.monotonic() + seconds, seconds)
        _log.info("an event is brought again in %.1f s: %s", seconds, why)
        consumer.seek(partition, offset)
        consumer.pause(partition)

    def _resume_due(self, consumer: KafkaConsumer) -> None:
        now = time.monotonic()
        assigned = consumer.assignment()
        paused = consumer.paused()
        for partition, retry in list(self._retries.items()):
            if partition not in assigned:
                del self._retries[partition]
            elif partition in paused and retry.due <= now:
                consumer.resume(partition)


@dataclass(frozen=True, slots=True)
class _Retry:
    """When a partition goes on, and how long it waits."""

    due: float
    seconds: float


class _Watch:
    """Tells whether a consumer has died without saying so."""

    def __init__(self) -> None:
        self._last_sign = time.monotonic()

    def is_stalled(self, consumer: KafkaConsumer, read: bool) -> bool:
        """Whether it has been without partitions for too long, or reads nothing though there is something to read."""
        now = time.monotonic()
        if read:
            self._last_sign = now
        if now - self._last_sign < _STALLED_SECONDS:
            return False
        self._last_sign = now
        # One that shares its group with more members than there are partitions is found stalled too, and loses nothing.
        running = consumer.assignment() - consumer.paused()
        if not consumer.assignment():
            return True
        ends: Mapping[TopicPartition, int] = consumer.end_offsets(list(running)) if running else {}
        return any(consumer.position(partition) < end for partition, end in ends.items())

"""The consumer: passes each event to its handler, at least once, and commits the offset after that.

Handlers are short, as long work is a job. An event that cannot be handled now is redelivered later, and one that never
can be becomes a dead letter, so that neither blocks the rest. A stalled consumer is replaced (watch.py).
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

from gpt2_common.events.dead_letters import DeadLetters
from gpt2_common.events.membership import CountingAssignor, leave_group
from gpt2_common.events.outage_log import OutageLog
from gpt2_common.events.topics import MAX_BACKOFF_MILLIS, ensure_topic
from gpt2_common.events.watch import ConsumerHealth, ConsumerWatch
from gpt2_common.failpoints import failpoint
from gpt2_contracts.events import CloudEvent

_log = logging.getLogger(__name__)
# Each return from the library's poll costs it up to a millisecond of a busy loop; `stop` waits for one.
_POLL_MILLIS = 1_000
# A broker answers a fetch as soon as it has a record, or after this. A partition that is resumed or newly assigned is
# fetched from after the fetch under way, so it may wait for that long.
_FETCH_WAIT_MILLIS = 3_000
_MAX_RECORDS = 100
_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 30.0
_RECONNECT_SECONDS = 2.0
_HEARTBEATS_IN_SESSION = 5
_DOUBT_SESSIONS = 10


class RetryLater(Exception):
    """A handler cannot take an event now, through no fault of the event: it is redelivered."""


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """What to consume, and as whom."""

    bootstrap_servers: str
    topic: str
    group: str
    instance_id: str
    """Makes the membership static; empty: it is not."""
    max_poll_seconds: float
    session_seconds: float
    """Heartbeat timeout of the group's members."""
    metadata_seconds: float
    """Maximum time until the client notices that the topic has changed."""


class EventConsumer:
    """Consumes a topic until it is stopped.

    Args:
        subscription: What, and as whom.
        handle: Takes an event. Raises RetryLater to have it redelivered; any other error makes it a dead letter.
    """

    def __init__(self, subscription: Subscription, handle: Callable[[CloudEvent], None]) -> None:
        self._subscription = subscription
        self._handle = handle
        self._dead_letters = DeadLetters(subscription.bootstrap_servers, subscription.topic, subscription.group)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="event-consumer", daemon=True)
        self._retries: dict[TopicPartition, _Retry] = {}
        self._outages = OutageLog(
            _log, (KafkaError, OSError, ValueError, AssertionError), "Kafka delivers events again"
        )
        self._healthy_at = time.monotonic()
        self._problem = "it has not joined its group yet"
        self._stall_reason = ""
        self._stalled_until = 0.0

    def start(self) -> None:
        """Begins to consume. Does not wait for the broker."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Stops after the current event. Blocks until then or the timeout."""
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def health(self) -> ConsumerHealth:
        """Whether events are received. May be called from any thread."""
        return ConsumerHealth(time.monotonic() - self._healthy_at, self._problem)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._consume()
            except Exception as error:  # noqa: BLE001 - if this thread died, the service would start no stage any more
                self._note_failure(error)
                self._stopping.wait(_RECONNECT_SECONDS)
        self._dead_letters.close()

    def _note_failure(self, error: Exception) -> None:
        self._outages.note_failure(
            error, f"no events are received, as Kafka does not deliver them ({error!r}): retrying"
        )
        self._problem = f"Kafka does not deliver events ({error!r})"

    def _note_health(self, read: bool, problem: str) -> None:
        now = time.monotonic()
        if read or now > self._stalled_until:
            self._stall_reason = ""
        if not problem and not self._stall_reason:
            self._healthy_at = now
        self._problem = problem or self._stall_reason

    def _note_replaced(self, why: str) -> None:
        _log.warning("the consumer leaves its group and is replaced, as %s", why)
        if not self._problem:
            # It seemed healthy but was stalled; so may its replacement be, until it reads a record.
            self._stall_reason = why
            self._stalled_until = time.monotonic() + _DOUBT_SESSIONS * self._subscription.session_seconds

    def _consume(self) -> None:
        """Consumes with one consumer of kafka-python, until it fails, must be replaced or is to stop."""
        topic = self._subscription.topic
        ensure_topic(self._subscription.bootstrap_servers, topic)
        assignor = CountingAssignor(topic)
        consumer = self._connect(assignor)
        try:
            consumer.subscribe([topic])
            self._retries.clear()
            watch = ConsumerWatch(consumer, assignor, topic, self._subscription.session_seconds)
            self._outages.note_success()
            while not self._stopping.is_set():
                self._resume_due(consumer)
                batches = consumer.poll(timeout_ms=_POLL_MILLIS, max_records=_MAX_RECORDS)
                self._take(consumer, batches)
                self._note_health(bool(batches), watch.problem())
                if why := watch.must_be_replaced():
                    self._note_replaced(why)
                    leave_group(consumer)
                    return
        finally:
            consumer.close(autocommit=False)

    def _connect(self, assignor: CountingAssignor) -> KafkaConsumer:
        subscription = self._subscription
        session_millis = int(subscription.session_seconds * 1000)
        return KafkaConsumer(
            bootstrap_servers=subscription.bootstrap_servers,
            group_id=subscription.group,
            group_instance_id=subscription.instance_id or None,
            partition_assignment_strategy=[assignor],
            enable_auto_commit=False,
            # Where the committed offset is outside the log, the log was truncated or replaced: all of it is read.
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_FETCH_WAIT_MILLIS,
            allow_auto_create_topics=False,
            metadata_max_age_ms=int(subscription.metadata_seconds * 1000),
            session_timeout_ms=session_millis,
            heartbeat_interval_ms=session_millis // _HEARTBEATS_IN_SESSION,
            reconnect_backoff_max_ms=MAX_BACKOFF_MILLIS,
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
            except RetryLater as error:
                self._retry_later(consumer, partition, record.offset, error)
                break
            last = record
            self._retries.pop(partition, None)
        return last

    def _take_one(self, record: Any) -> None:
        try:
            self._handle(CloudEvent.from_record(record.headers, record.value))
        except RetryLater:
            raise
        except Exception as error:  # noqa: BLE001 - one event that cannot be handled must not stop those behind it
            _log.exception("offset %d of partition %d becomes a dead letter", record.offset, record.partition)
            self._dead_letters.add(record, error, traceback.format_exc())

    def _retry_later(self, consumer: KafkaConsumer, partition: TopicPartition, offset: int, why: RetryLater) -> None:
        last = self._retries.get(partition)
        seconds = min(last.seconds * 2, _LAST_RETRY_SECONDS) if last else _FIRST_RETRY_SECONDS
        self._retries[partition] = _Retry(time.monotonic() + seconds, seconds)
        _log.info("an event is redelivered in %.1f s: %s", seconds, why)
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
    """When a partition is read again, and how long it was paused."""

    due: float
    seconds: float

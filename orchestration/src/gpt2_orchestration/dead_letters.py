"""Dead letters: events that a service could not handle, listed, and sent again once what was wrong is put right.

A replayed event goes to the topic that it came from, as it came. Services that have handled it know it and do nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grpc import StatusCode
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from gpt2_orchestration.client import ServiceError

TOPIC = "gpt2.stage-events.v1.dlq"
_PREFIX = "dlq_"
_POLL_MILLIS = 1000
_SEND_SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """One record of the topic of dead letters."""

    place: str
    """`partition:offset` there."""
    topic: str
    """Where it came from."""
    consumer: str
    """Group that could not handle it."""
    reason: str
    time: str
    record: Any


def list_letters(bootstrap_servers: str) -> list[DeadLetter]:
    """All dead letters that the broker keeps, oldest first in each partition. Raises ServiceError."""
    try:
        consumer = KafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        try:
            return list(_read_to_end(consumer))
        finally:
            consumer.close()
    except KafkaError as error:
        message = (
            f"Kafka at {bootstrap_servers} does not answer ({error}): correct --kafka, GPT2_KAFKA_BOOTSTRAP_SERVERS"
        )
        raise ServiceError(message, StatusCode.UNAVAILABLE) from error


def replay(bootstrap_servers: str, letters: list[DeadLetter]) -> int:
    """Sends dead letters again. Returns how many the broker has taken. Raises ServiceError."""
    try:
        producer = KafkaProducer(bootstrap_servers=bootstrap_servers, acks="all")
        try:
            for letter in letters:
                headers = [(name, value) for name, value in letter.record.headers if not name.startswith(_PREFIX)]
                sent = producer.send(letter.topic, key=letter.record.key, value=letter.record.value, headers=headers)
                sent.get(timeout=_SEND_SECONDS)
        finally:
            producer.close()
    except KafkaError as error:
        message = f"Kafka at {bootstrap_servers} did not take all of them ({error}): repeat it"
        raise ServiceError(message, StatusCode.UNAVAILABLE) from error
    return len(letters)


def _read_to_end(consumer: KafkaConsumer) -> Iterator[DeadLetter]:
    # There is no such topic before the first dead letter.
    partitions = [TopicPartition(TOPIC, number) for number in consumer.partitions_for_topic(TOPIC) or ()]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions) if partitions else {}
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for records in consumer.poll(timeout_ms=_POLL_MILLIS).values():
            yield from map(_letter, records)


def _letter(record: Any) -> DeadLetter:
    headers = {name: value.decode(errors="replace") for name, value in record.headers}
    return DeadLetter(
        place=f"{record.partition}:{record.offset}",
        topic=headers.get("dlq_topic", TOPIC.removesuffix(".dlq")),
        consumer=headers.get("dlq_consumer", ""),
        reason=headers.get("dlq_reason", ""),
        time=headers.get("dlq_time", ""),
        record=record,
    )

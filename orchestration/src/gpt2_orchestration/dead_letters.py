"""Dead letters: events that a service could not handle, listed, and sent again once what was wrong is put right.

A replayed event goes to the topic that it came from, as it came. Services that have handled it know it and do nothing.
"""

from dataclasses import dataclass
from typing import Any

from grpc import StatusCode
from kafka import KafkaProducer
from kafka.errors import KafkaError

from gpt2_orchestration.client import ServiceError
from gpt2_orchestration.event_log import EVENT_TOPIC, read_topic, text_headers

_PREFIX = "dlq_"
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


def list_letters(bootstrap_servers: str, topic: str = EVENT_TOPIC) -> list[DeadLetter]:
    """All dead letters of a topic of events that the broker keeps, oldest first in each partition.

    Raises:
        ServiceError: The broker does not answer.
    """
    return [_letter(record, topic) for record in read_topic(bootstrap_servers, f"{topic}.dlq")]


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


def _letter(record: Any, topic: str) -> DeadLetter:
    headers = text_headers(record)
    return DeadLetter(
        place=f"{record.partition}:{record.offset}",
        topic=headers.get("dlq_topic", topic),
        consumer=headers.get("dlq_consumer", ""),
        reason=headers.get("dlq_reason", ""),
        time=headers.get("dlq_time", ""),
        record=record,
    )

"""The dead-letter topic: events that a consumer could not process, listed and republished.

A republished event goes to its original topic unchanged. Consumers that have processed it ignore it.
"""

from dataclasses import dataclass
from typing import Any

from grpc import StatusCode
from kafka import KafkaProducer
from kafka.errors import KafkaError

from gpt2_contracts.events import DEFAULT_TOPIC, DeadLetterHeaders, dead_letter_topic, original_headers
from gpt2_orchestration.client.event_log import read_topic
from gpt2_orchestration.client.service_client import ServiceError

_SEND_SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """One record of the dead-letter topic."""

    place: str
    """`partition:offset` in the dead-letter topic."""
    topic: str
    """The original topic."""
    consumer: str
    """Consumer group that could not process it."""
    reason: str
    time: str
    record: Any


def list_letters(bootstrap_servers: str, topic: str = DEFAULT_TOPIC) -> list[DeadLetter]:
    """All retained dead letters of an event topic, oldest first in each partition.

    Raises:
        ServiceError: The broker does not answer.
    """
    return [_letter(record, topic) for record in read_topic(bootstrap_servers, dead_letter_topic(topic))]


def replay(bootstrap_servers: str, letters: list[DeadLetter]) -> int:
    """Republishes dead letters. Returns how many the broker acknowledged. Raises ServiceError."""
    try:
        producer = KafkaProducer(bootstrap_servers=bootstrap_servers, acks="all")
        try:
            for letter in letters:
                headers = original_headers(letter.record.headers)
                sent = producer.send(letter.topic, key=letter.record.key, value=letter.record.value, headers=headers)
                sent.get(timeout=_SEND_SECONDS)
        finally:
            producer.close()
    except KafkaError as error:
        message = f"Kafka at {bootstrap_servers} did not accept all records ({error}): repeat the command"
        raise ServiceError(message, StatusCode.UNAVAILABLE) from error
    return len(letters)


def _letter(record: Any, topic: str) -> DeadLetter:
    headers = DeadLetterHeaders.from_headers(record.headers)
    return DeadLetter(
        place=f"{record.partition}:{record.offset}",
        topic=headers.topic or topic,
        consumer=headers.consumer,
        reason=headers.reason,
        time=headers.time,
        record=record,
    )
